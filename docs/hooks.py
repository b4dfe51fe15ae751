"""Fills the reference pages in from the code, when mkdocs builds the site."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from docstring_parser import parse

from difformer.cli.entry import VERBS
from difformer.cli.runs import RecipeVerb


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the marks that stand for what is generated."""
    if page.file.src_uri == "reference/command-line.md":
        return markdown.replace("<!-- verbs -->", "\n\n".join(_verbs()))
    if page.file.src_uri == "reference/recipes.md":
        return markdown.replace("<!-- recipes -->", "\n\n".join(_recipes()))
    # What tells the tests how to run a snippet is nothing to read.
    return re.sub(r"<!-- test: .*? -->\n", "", markdown)


def _verbs() -> Iterator[str]:
    for name, verb in VERBS.items():
        yield f"## {name}"
        if isinstance(verb, RecipeVerb):
            yield verb.description
            first = "RUN, FILE or hf://owner/name" if verb.read_first else "RECIPE"
            yield f"```text\ndifformer {name} {first} [--KEY VALUE …]\n```"
            yield f"Keys: [{verb.configuration.__name__}](recipes.md#{verb.configuration.__name__.lower()})."
            rows = [f"| `--{switch}` | {help}. |" for switch, help in verb.switches.items()]
            if rows:
                yield "\n".join(["| Option | Meaning |", "|---|---|", *rows])
            continue
        found = parse(inspect.getdoc(verb) or "")
        yield "\n\n".join(filter(None, (found.short_description, found.long_description)))
        meanings = {entry.arg_name: entry.description for entry in found.params}
        rows = [
            f"| `{_option(parameter)}` | {_cell(meanings.get(parameter.name))} | {_default(parameter.default)} |"
            for parameter in inspect.signature(verb).parameters.values()
        ]
        if rows:
            yield "\n".join(["| Argument | Meaning | Default |", "|---|---|---|", *rows])


def _option(parameter: inspect.Parameter) -> str:
    positional = parameter.default is inspect.Parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
    return parameter.name.upper() if positional else f"--{parameter.name}"


def _recipes() -> Iterator[str]:
    read_by: dict[type, list[str]] = {}
    for name, verb in VERBS.items():
        if isinstance(verb, RecipeVerb):
            read_by.setdefault(verb.configuration, []).append(f"`difformer {name}`")
    for configuration, verbs in read_by.items():
        yield f"## {configuration.__name__}\n\nOf {' and '.join(verbs)}."
        yield "\n".join(["| Key | Default | Meaning |", "|---|---|---|", *_rows(configuration, "")])


def _rows(configuration: Any, prefix: str) -> Iterator[str]:
    meanings = {entry.arg_name: entry.description for entry in parse(inspect.getdoc(configuration) or "").params}
    for kind in inspect.getmro(configuration)[1:-1]:
        meanings = {entry.arg_name: entry.description for entry in parse(inspect.getdoc(kind) or "").params} | meanings
    # One entry may tell of several keys: `mixup, cutmix: …`.
    meanings |= {name.strip(): text for names, text in list(meanings.items()) for name in names.split(",")}
    types = get_type_hints(configuration)
    for field in dataclasses.fields(configuration):
        key, kind = f"{prefix}{field.name}", types[field.name]
        if dataclasses.is_dataclass(kind):
            yield f"| **`{key}`** | | {_cell(meanings.get(field.name))} |"
            yield from _rows(kind, f"{key}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield f"| `{key}` | {_default(default)} | {_cell(meanings.get(field.name))} |"


def _default(value: Any) -> str:
    if value is dataclasses.MISSING or value is inspect.Parameter.empty:
        return "must be given"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ("", (), {}) else "none"


def _cell(text: str | None) -> str:
    """Text that fits into a cell of a table."""
    return re.sub(r"\s+", " ", text or "").replace("|", "\\|")
