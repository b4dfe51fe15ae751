"""The README and the pages of the documentation: their commands and snippets run, and say what they print.

A comment before a snippet says where that is not so: `<!-- test: parse -->` for commands that want data or hours, of
which the options are read, and `<!-- test: skip: WHY -->` for those that install, or need machines that are not here.
"""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from data_sets import make_masks
from PIL import Image

from difformer.cli import main
from difformer.cli.runs import RecipeVerb
from difformer.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- test: (?P<how>[^>]*?) -->\n)?^```(?P<kind>\w+)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)
# What is needed to see a command work, and no more.
QUICK = {
    "train": [
        "--training.epochs",
        "1",
        "--training.least_steps",
        "1",
        "--schedule.warmup_epochs",
        "0",
        "--trackers",
        "[]",
    ]
}


def blocks(page):
    found = [(match["how"] or "", match["kind"], match["text"]) for match in BLOCK.finditer(page.read_text())]
    return [(*one, found[i + 1][2] if found[i + 1 : i + 2] and found[i + 1][1] == "text" else None)
            for i, one in enumerate(found)]  # fmt: skip


def commands(text):
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def runs_commands(page):
    """Whether trying a page takes a while: some of its commands train."""
    return any(kind == "sh" and not how for how, kind, _, _ in blocks(page))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A working folder as a reader has it: recipes, a few images of two classes, and some with masks."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("train", "eval"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for label, colour in (("cat", (160, 90, 40)), ("dog", (40, 90, 160))):
            (folder / "pets" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "pets" / split / label / f"{number}.jpg")
    Image.fromarray(pixels).save(folder / "photo.jpg")
    make_masks(folder / "roads", {"train": 6, "test": 3})
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def check(command):
    """Has a command's options read, and its recipe where it has one."""
    _, name, *words = shlex.split(command)
    verb = VERBS[name]
    if isinstance(verb, RecipeVerb):
        with pytest.raises(SystemExit) as ended:
            main([name, *words, "--print_config"])
        assert ended.value.code == 0, command
        return
    known = {f"--{parameter}" for parameter in verb.__annotations__} | {"--arch", "--published"}
    assert {word.split("=")[0].split(".")[0] for word in words if word.startswith("--")} <= known, command


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if runs_commands(page) else ()) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_snippets(page, desk):
    names = {"__name__": "snippet"}
    for how, kind, text, printed in blocks(page):
        if kind == "python" and not how.startswith("skip"):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, str(page), "exec"), names)
            assert printed is None or out.getvalue() == printed, text
        for command in commands(text) if kind == "sh" else ():
            if how.startswith("skip"):
                continue
            assert command.startswith("difformer "), f"{command} cannot be tried; say why with <!-- test: skip: WHY -->"
            if how == "parse":
                check(command)
                continue
            verb, *words = shlex.split(command)[1:]
            assert main([verb, *words, *([] if "--dry_run" in words else QUICK.get(verb, []))]) == 0, command


def test_wrong_snippets_are_seen(desk, capsys):
    with pytest.raises(AssertionError):
        check("difformer sample adm_elpv grid.png --sted 3")
    with pytest.raises(pytest.fail.Exception):
        check("difformer train train/configs/folder.yaml --data.rot pets")
    capsys.readouterr()


def test_the_code_of_the_page_on_extending_is_what_is_tested():
    page = (ROOT / "docs" / "extending.md").read_text()
    shown = re.findall(r'^```{\.python title="([\w/.]+)"}\n(.*?)^```$', page, re.M | re.S)
    assert len(shown) == 5
    for name, code in shown:
        assert code == (ROOT / "tests" / "extending" / name).read_text(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:train|eval|tests|tools|examples|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target
