"""All verbs by name, and running one."""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile, zip_longest
from typing import get_origin, get_type_hints

from difformer._optional import require
from difformer.allocator import keep_freed_memory
from difformer.cli.bench import bench
from difformer.cli.compare import compare
from difformer.cli.completion import completion
from difformer.cli.fid import fid
from difformer.cli.listing import list_weights
from difformer.cli.matching import match, match_pairs
from difformer.cli.quickstart import quickstart
from difformer.cli.runs import RECIPE_VERBS, RecipeVerb
from difformer.cli.sampling import sample
from difformer.cli.weights import convert, export, info, predict
from difformer.config.options import option_kinds, with_lists
from difformer.engine.runtime.stopping import Stopped

VERBS: dict[str, Callable[..., int | None] | RecipeVerb] = {
    "quickstart": quickstart,
    "info": info,
    "convert": convert,
    "predict": predict,
    "export": export,
    "sample": sample,
    "fid": fid,
    "match": match,
    "match-pairs": match_pairs,
    "bench": bench,
    "compare": compare,
    "completion": completion,
    **RECIPE_VERBS,
}
# What a verb does when it is given no arguments, where that is something of its own.
ALONE: dict[str, Callable[[], None]] = {"info": list_weights}


def run(name: str, arguments: list[str]) -> int:
    """Runs a verb, and returns the exit status.

    Args:
        name: of the verb.
        arguments: of it.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as the verb.
    """
    keep_freed_memory()
    try:
        verb = VERBS[name]
        if isinstance(verb, RecipeVerb):
            return verb.run(f"difformer {name}", arguments) or 0
        if not arguments and name in ALONE:
            ALONE[name]()
            return 0
        jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
        given = _gather_list(verb, _expand_flags(verb, with_lists(arguments, dict(option_kinds(get_type_hints(verb))))))
        return jsonargparse.auto_cli(verb, args=given, prog=f"difformer {name}") or 0
    except Stopped as stopped:
        print(f"difformer: {stopped}", file=sys.stderr)
        return stopped.status


def _expand_flags(verb: Callable[..., int | None], arguments: Sequence[str]) -> list[str]:
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
