"""The house: no circle of files or folders, no room that holds it all, verbs that do not know each other."""

import ast
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import difformer

PACKAGE = Path(difformer.__file__).parent
FILES = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
MODULES = {".".join(("difformer", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
# Verbs that run others, and those they run.
RUNS = {
    "compare": {"eval"},
    "quickstart": {"compare", "extract", "probe", "train"},
    "select": {"probe"},
    "sweep": {"probe"},
    "transfer": {"train"},
}
# What a room may hold of all lines; each verb is one.
SHARE = 0.15


def imported(path):
    """The files of the package that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (MODULES[name] for name in names if name in MODULES and MODULES[name] != path)


GRAPH = {path: set(imported(path)) for path in FILES}


def circle(graph):
    """A circle of a graph, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(path.relative_to(PACKAGE)) for path in error.args[1]]
    return None


def test_no_circle_of_files():
    assert circle(GRAPH) is None


def test_no_circle_of_folders():
    folders = defaultdict(set)
    for path, others in GRAPH.items():
        folders[path.parent] |= {other.parent for other in others} - {path.parent, PACKAGE}
    folders.pop(PACKAGE)
    assert circle(folders) is None


def test_a_circle_would_be_found():
    one, other = FILES[:2]
    assert circle(GRAPH | {one: {other}, other: {one}}) is not None


def test_no_room_holds_it_all():
    lines = Counter()
    for path in PACKAGE.rglob("*.py"):
        room, *inner = path.relative_to(PACKAGE).parts
        lines[f"verbs/{inner[0]}" if room == "verbs" else room] += len(path.read_text().splitlines())
    room, most = lines.most_common(1)[0]
    assert most <= SHARE * lines.total(), f"{room} holds {most} of {lines.total()} lines"


@pytest.mark.parametrize(
    "verb", sorted(path.name for path in (PACKAGE / "verbs").iterdir() if path.is_dir() and path.name[0] != "_")
)
def test_verbs_do_not_know_each_other(verb):
    folder = PACKAGE / "verbs" / verb
    known = {
        other.parent.name for path in folder.glob("*.py") for other in GRAPH.get(path, ()) if "verbs" in other.parts
    }
    assert known - {verb} <= RUNS.get(verb, set())
