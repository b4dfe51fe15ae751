"""Options as people write them: lists word by word or with commas, and the names of the published code."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import takewhile
from typing import Any, get_args, get_origin, get_type_hints

from difformer.registry import did_you_mean

# Of the published DifFormer and DifFeed code, with what may stand here in their place.
_PUBLISHED = {
    "block_list": ("extractor.taps", "taps", "published.taps"),
    "t_list": ("extractor.timesteps", "timesteps", "published.timesteps"),
    "first_fw_b_list": ("extractor.first_pass_taps", "published.first_pass_taps"),
    "feedback_b_list": ("extractor.feedback_taps", "published.feedback_taps"),
    "pre_pool_size": ("head.arguments.pool", "pool", "pools", "published.pool"),
    "head_type": ("head.name",),
}


def option_kinds(kinds: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of options with their types, from those of a dataclass or a function."""
    for name, kind in kinds.items():
        yield f"{prefix}{name}", kind
        for inner in (kind, *get_args(kind)):
            if is_dataclass(inner):
                yield from option_kinds(get_type_hints(inner), f"{prefix}{name}.")


def refuse_published(arguments: Sequence[str], known: Iterable[str]) -> None:
    """Raises ValueError when an option is one of the published code's; the message names ours.

    Args:
        arguments: of the command line.
        known: options of the verb; mappings, whose keys are free, count with all of them.
    """
    names = set(known)
    # A section's keys are known, so that it has no others.
    free = names - {name.rpartition(".")[0] for name in names}
    for word in arguments:
        name = word[2:].partition("=")[0]
        if not word.startswith("--") or name in names or name not in _PUBLISHED:
            continue
        ours = [own for own in _PUBLISHED[name] if own in names or own.rpartition(".")[0] in free]
        instead = f"here it is --{ours[0]}" if ours else "there is nothing of the kind here"
        raise ValueError(f"--{name} is an option of the published code; {instead}")


def check_options(arguments: Sequence[str], known: Collection[str], mappings: Sequence[str] = ()) -> None:
    """Raises ValueError when an option is unknown; the message names the nearest known one.

    Args:
        arguments: of the command line.
        known: names of options, without dashes.
        mappings: those whose values are mappings, with options for keys of any name below.
    """
    for word in arguments:
        name = word[2:].partition("=")[0]
        below = any(name.startswith(f"{mapping}.") for mapping in mappings)
        if word.startswith("--") and name not in known and not below:
            raise unknown_key(name, sorted(known))


def unknown_key(name: str, known: Sequence[str]) -> ValueError:
    """The error that names the nearest known key; for a key that several sections have, such as seed, all of them."""
    return ValueError(f"unknown key {name!r}; {did_you_mean(name, known)}")


def with_lists(arguments: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """The arguments with lists in brackets, which may be written `--taps 6 9`, `--taps 6,9` or `--taps '[6, 9]'`.

    Args:
        arguments: of the command line.
        kinds: types of the options, from `option_kinds`.
    """
    given: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, text = word[2:].partition("=")
        element = _element(kinds.get(name)) if word.startswith("--") else None
        if element is None:
            given.append(word)
            continue
        values = [text] if equals else list(takewhile(lambda other: not other.startswith("-"), words))
        if not equals:
            del words[: len(values)]
        # A number that may stand in place of a list, as that of a square does, is none.
        free = get_origin(kinds[name]) not in (tuple, list) and element in get_args(kinds[name])
        single = free and len(values) == 1 and "," not in values[0]
        given += [f"--{name}={values[0] if single else _bracketed(values, element)}"] if values else [word]
    return given


def _element(kind: Any) -> Any:
    """The type of a list's elements; None of what is no list."""
    return next((get_args(one)[0] for one in (kind, *get_args(kind)) if get_origin(one) in (tuple, list)), None)


def _bracketed(values: Sequence[str], element: Any) -> str:
    if values[0].startswith("[") or list(values) in ([""], ["null"]):
        return " ".join(values)
    # Of several words, a comma may be a part: `tench, Tinca tinca` is a class.
    parts = values if element is str and len(values) > 1 else [part.strip() for v in values for part in v.split(",")]
    parts = [part for part in parts if part]
    return f"[{', '.join(part if element is not str and _is_number(part) else json.dumps(part) for part in parts)}]"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
