"""What can be said of verbs and options without loading what runs: from verbs.json, which tools/options.py writes."""

import argparse
import json
from functools import cache
from importlib.resources import files
from typing import Any

from difformer._version import __version__

# Exit status when everything was done except for images that could not be read.
SKIPPED = 3
# What people want to do, and the verbs that do it; together they are all verbs.
AIMS = {
    "see it work": ("quickstart", "info", "bench"),
    "train and measure": ("train", "eval", "probe", "match-pairs", "transfer", "compare", "extract"),
    "find out which features to use": ("sweep", "select", "look", "cka"),
    "use what is trained": ("predict", "export", "match", "sample", "fid"),
    "bring or train a backbone": ("convert", "pretrain"),
    "have the shell complete all this": ("completion",),
}


@cache
def described() -> dict[str, Any]:
    """The verbs, and the configurations that they read."""
    content: dict[str, Any] = json.loads(files("difformer.cli").joinpath("verbs.json").read_text(encoding="utf-8"))
    return content


def options(name: str) -> list[dict[str, Any]]:
    """The options of a verb: `name` without dashes, `kind` of value ("" for none), `default` (None where a value must
    be given) and `meaning`."""
    verb = described()["verbs"][name]
    return [*verb["options"], *described()["configurations"].get(verb.get("configuration"), ())]


def usage() -> argparse.ArgumentParser:
    """Lists the verbs by what one wants to do, and refuses others."""
    verbs, listed = described()["verbs"], []
    for aim, names in AIMS.items():
        firsts = [verbs[name]["description"].partition(". ")[0].rstrip(".") for name in names]
        listed += [f"\nto {aim}:", *(f"  {name:<12}{text}" for name, text in zip(names, firsts, strict=True))]
    parser = argparse.ArgumentParser(
        prog="difformer",
        usage="difformer VERB …",
        description="Pretrained diffusion models as vision backbones. `difformer VERB --help` says more of a verb.",
        epilog="\n".join(listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"difformer {__version__}")
    parser.add_argument("VERB", choices=verbs, help=argparse.SUPPRESS)
    return parser


def verb_help(name: str, *, whole: bool = True) -> argparse.ArgumentParser:
    """Has the help and the usage of a verb; it does not read values.

    Args:
        name: of the verb.
        whole: with all keys of a recipe, not only those that people use first.
    """
    verb = described()["verbs"][name]
    shown = [key for key in options(name) if whole or key["name"] in verb.get("shown", (key["name"],))]
    left_out = len(options(name)) - len(shown)
    words = [word["name"] for word in verb["words"]]
    parser = argparse.ArgumentParser(
        prog=f"difformer {name}",
        usage=" ".join([f"difformer {name}", *words, "[--OPTION VALUE …]"]),
        description=verb["description"],
        epilog=f"{left_out} more: `difformer {name} --help all`. Every key of a recipe is an option."
        if left_out
        else None,
    )
    for key in [*verb["words"], *shown]:
        # Of a section, and of what is given without a value, there is no default.
        default = {None: " (must be given)", "": ""}.get(key["default"], f" (default: {key['default']})")
        dashes = "" if key in verb["words"] else "--"
        text = f"{key['meaning']}{default if dashes else ''}".replace("%", "%%")
        parser.add_argument(f"{dashes}{key['name']}", metavar=key["kind"] if dashes else None, help=text)
    return parser
