"""Finding the verb, reading its arguments, and saying what went wrong."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile, zip_longest
from typing import get_origin, get_type_hints

from difformer._optional import require
from difformer._version import __version__
from difformer.allocator import keep_freed_memory
from difformer.cli.bench import bench
from difformer.cli.compare import compare
from difformer.cli.listing import list_weights
from difformer.cli.quickstart import quickstart
from difformer.cli.runs import RECIPE_VERBS, RecipeVerb
from difformer.cli.sampling import sample
from difformer.cli.weights import convert, info, predict
from difformer.config.options import option_kinds, refuse_published, with_lists
from difformer.engine.runtime.stopping import Stopped

VERBS: dict[str, Callable[..., int | None] | RecipeVerb] = {
    "quickstart": quickstart,
    "info": info,
    "convert": convert,
    "predict": predict,
    "sample": sample,
    "bench": bench,
    "compare": compare,
    **RECIPE_VERBS,
}
# What people want to do, and the verbs that do it; together they are all verbs.
AIMS = {
    "see it work": ("quickstart", "info", "bench"),
    "train and measure": ("train", "eval", "probe", "transfer", "compare", "extract"),
    "find out which features to use": ("sweep", "select", "look", "cka"),
    "use what is trained": ("predict", "sample"),
    "bring or train a backbone": ("convert", "pretrain"),
}
# What a verb does when it is given no arguments, where that is something of its own.
ALONE: dict[str, Callable[[], None]] = {"info": list_weights}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the console's entry point.

    Args:
        argv: arguments without the program's name; those of the process when left out.

    Returns:
        The exit status: 0, 1 after an error that was printed, or the verb's own; 128 + the number of the signal that
        stopped it. Wrong usage exits with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in VERBS:
        _usage().parse_args(arguments)
    keep_freed_memory()
    try:
        return _run(arguments[0], arguments[1:])
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"difformer: error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"difformer: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("difformer: interrupted", file=sys.stderr)
        return 130


def _run(name: str, arguments: list[str]) -> int:
    if not arguments and name in ALONE:
        ALONE[name]()
        return 0
    verb = VERBS[name]
    if isinstance(verb, RecipeVerb):
        return verb.run(f"difformer {name}", arguments) or 0
    jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
    kinds = dict(option_kinds(get_type_hints(verb)))
    refuse_published(arguments, kinds)
    given = _gather_list(verb, _expand_flags(verb, with_lists(arguments, kinds)))
    return jsonargparse.auto_cli(verb, args=given, prog=f"difformer {name}") or 0


def _usage() -> argparse.ArgumentParser:
    """Lists the verbs by what one wants to do, and refuses others."""
    listed = []
    for aim, names in AIMS.items():
        listed += [f"\nto {aim}:", *(f"  {name:<12}{_first_sentence(VERBS[name])}" for name in names)]
    parser = argparse.ArgumentParser(
        prog="difformer",
        usage="difformer VERB …",
        description="Pretrained diffusion models as vision backbones. `difformer VERB --help` says more of a verb.",
        epilog="\n".join(listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"difformer {__version__}")
    parser.add_argument("VERB", choices=VERBS, help=argparse.SUPPRESS)
    return parser


def _first_sentence(verb: Callable[..., int | None] | RecipeVerb) -> str:
    text = verb.description if isinstance(verb, RecipeVerb) else inspect.getdoc(verb) or ""
    return text.partition("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")


def _expand_flags(verb: Callable[..., int | None], arguments: list[str]) -> list[str]:
    """Lets a verb's switches be given without a value: `--download` for `--download=true`."""
    switches = {f"--{p.name}" for p in inspect.signature(verb).parameters.values() if p.annotation is bool}
    return [
        f"{argument}=true" if argument in switches and after not in ("true", "false") else argument
        for argument, after in zip_longest(arguments, arguments[1:])
    ]


def _gather_list(verb: Callable[..., int | None], arguments: list[str]) -> list[str]:
    """Lets a verb's list be given word by word, before the options."""
    first = next(iter(inspect.signature(verb).parameters.values()))
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))
    if get_origin(first.annotation) is not list or first.kind is first.KEYWORD_ONLY or not words:
        return arguments
    return [json.dumps(words), *arguments[len(words) :]]
