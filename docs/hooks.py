"""Fills the reference pages in from the code, when mkdocs builds the site."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from difformer.cli.help import described


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the marks that stand for what is generated."""
    if page.file.src_uri == "reference/command-line.md":
        return markdown.replace("<!-- verbs -->", "\n\n".join(_verbs()))
    if page.file.src_uri == "reference/recipes.md":
        return markdown.replace("<!-- recipes -->", "\n\n".join(_recipes()))
    # What tells the tests how to run a snippet is nothing to read.
    return re.sub(r"<!-- test: .*? -->\n", "", markdown)


def _verbs() -> Iterator[str]:
    for name, verb in described()["verbs"].items():
        words = " ".join(word["name"] for word in verb["words"])
        yield f"## {name}\n\n{verb['description']}\n\n```text\ndifformer {name} {words} [--OPTION VALUE …]\n```"
        if kind := verb.get("configuration"):
            yield f"Every key of [{kind}](recipes.md#{kind.lower()}) is an option, and:"
        given = [(f"`{word['name']}`", word) for word in verb["words"]]
        given += [(f"`--{option['name']}`", option) for option in verb["options"]]
        yield "\n".join(["| Argument | Default | Meaning |", "|---|---|---|", *(_row(*one) for one in given)])


def _recipes() -> Iterator[str]:
    verbs = described()["verbs"]
    for kind, keys in described()["configurations"].items():
        read_by = [f"`difformer {name}`" for name, verb in verbs.items() if verb.get("configuration") == kind]
        yield f"## {kind}\n\nOf {' and '.join(read_by)}."
        # A section stands out before its keys.
        rows = [_row(f"`{key['name']}`" if key["kind"] else f"**`{key['name']}`**", key) for key in keys]
        yield "\n".join(["| Key | Default | Meaning |", "|---|---|---|", *rows])


def _row(name: str, key: Mapping[str, Any]) -> str:
    """A row of a table. Of what must be given there is no default, and of sections and switches nothing to say."""
    default = {None: "must be given", "": "", "none": "none"}.get(key["default"], f"`{key['default']}`")
    meaning = key["meaning"].replace("|", "\\|")
    return f"| {name} | {default} | {meaning} |"
