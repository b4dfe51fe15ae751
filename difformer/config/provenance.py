"""The part of a recipe that weights carry, and how two recipes differ."""

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

from difformer.config.reading import plain
from difformer.files import expand_user

# Folders of one machine: they say nothing about the weights, and are private.
_PLACES = ("output", "data.root", "data.list_file", "cache.folder", "backbone.folder")


def carried(recipe: Any) -> dict[str, Any]:
    """A recipe as the weights carry it, in JSON types and without the folders of this machine; see `without_places`."""
    stripped: dict[str, Any] = without_places(plain(recipe))
    return stripped


def without_places(value: Any, key: str = "") -> Any:
    """A recipe's values without the places on one machine.

    The folders are left out, except the address of data on a hub. Of any other path that leads out of the working
    folder, such as a backbone's, only the last name is kept.

    Args:
        value: the recipe as nested mappings. Values from an earlier call stay as they are.
        key: the dotted key of the value.
    """
    if isinstance(value, Mapping):
        left_out = set(_PLACES)
        if key == "data" and value.get("name") == "huggingface":
            root = value.get("root")
            if isinstance(root, str) and not expand_user(root).exists():
                left_out.remove("data.root")
        dotted = {name: f"{key}.{name}" if key else str(name) for name in value}
        return {
            name: without_places(item, dotted[name]) for name, item in value.items() if dotted[name] not in left_out
        }
    if isinstance(value, list | tuple):
        return [without_places(item, key) for item in value]
    if isinstance(value, str) and (expand_user(value).is_absolute() or ".." in PurePath(value).parts):
        return PurePath(value).name
    return value


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configurations differ, with both values."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        old, new = plain(before.get(key)), plain(now.get(key))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed |= changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changed[f"{prefix}{key}"] = (old, new)
    return changed


def check_unchanged(
    place: Path,
    holds: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    may_change: Collection[str],
    words: Mapping[str, str] | None = None,
) -> None:
    """Raises ValueError when something to be resumed has another configuration; the message lists the differences.

    Args:
        place: its folder.
        holds: what the folder then holds, for the message: "a run with another recipe".
        before, now: the configuration it was begun with, and the one given now.
        may_change: dotted keys that may differ.
        words: texts for keys whose values mean nothing to a reader.
    """
    said = words or {}
    other = [
        said.get(key) or f"{key} was {old!r} and is now {new!r}"
        for key, (old, new) in changed_keys(before, now).items()
        if key not in may_change
    ]
    if other:
        listed = "; ".join(other)
        raise ValueError(
            f"{place} holds {holds}: {listed}. Give the same to resume it, choose another --output, or --overwrite"
        )
