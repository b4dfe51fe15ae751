"""Finding the verb, and saying what is wrong with its options before anything is loaded that takes long."""

import sys
from collections.abc import Sequence

from difformer.cli.completion import completion
from difformer.cli.help import described, options, usage, verb_help
from difformer.config.options import check_options, refuse_published
from difformer.registry import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the console's entry point.

    Args:
        argv: arguments without the program's name; those of the process when left out.

    Returns:
        The exit status: 0, 1 after an error that was printed, or the verb's own; 128 + the number of the signal that
        stopped it. Wrong usage exits with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments[0] = "--help"
    verbs = described()["verbs"]
    if not arguments or arguments[0].startswith("-"):
        usage().parse_args(arguments)
    if arguments[0] not in verbs:
        usage().error(f"unknown verb {arguments[0]!r}; {did_you_mean(arguments[0], verbs)}")
    name, *words = arguments
    asked = [word.partition("=") for word in words]
    if any(word in ("-h", "--help") for word, _, _ in asked):
        verb_help(name, whole=any("all" in (word, value) for word, _, value in asked)).print_help()
        return 0
    try:
        _check(name, words)
        if name == "completion":
            completion(verb_help(name).parse_args(words).SHELL)
            return 0
        # It loads torch and the whole package.
        from difformer.cli.verbs import run

        return run(name, words)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"difformer: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("difformer: interrupted", file=sys.stderr)
        return 130


def _check(name: str, words: Sequence[str]) -> None:
    """Refuses options that the verb does not have: of a recipe's verb with a ValueError, as a key that is unknown in a
    file; else as wrong usage."""
    verb, known = described()["verbs"][name], {key["name"] for key in options(name)}
    mappings = verb.get("mappings", ())
    refuse_published(words, known)
    try:
        check_options(words, {*known, "config", "print_config"}, mappings)
    except ValueError as error:
        if "configuration" in verb:
            raise
        verb_help(name).error(str(error))
