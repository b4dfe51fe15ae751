"""What weights carry of the recipe they were trained with, and in what two recipes differ."""

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

from difformer.config.reading import plain
from difformer.files import expand_user

# Where things lie on one machine: it says nothing of the weights, and is nobody else's business.
_PLACES = ("output", "data.root", "data.list_file", "cache.folder", "backbone.folder")


def carried(recipe: Any) -> dict[str, Any]:
    """A recipe as the weights carry it, in JSON types and without the folders of this machine; see `without_places`."""
    stripped: dict[str, Any] = without_places(plain(recipe))
    return stripped


def without_places(value: Any, key: str = "") -> Any:
    """A recipe's values without where things lie on one machine.

    The folders are left out, but for data that comes from a hub. Of any other path that leads out of the working
    folder, such as a backbone's, the last name is kept.

    Args:
        value: the recipe as nested mappings; what is so already stays as it is.
        key: the dotted key the value stands under.
    """
    if isinstance(value, Mapping):
        left_out = set(_PLACES) - ({"data.root"} if key == "data" and _on_the_hub(value) else set())
        dotted = {name: f"{key}.{name}" if key else str(name) for name in value}
        return {
            name: without_places(item, dotted[name]) for name, item in value.items() if dotted[name] not in left_out
        }
    if isinstance(value, list | tuple):
        return [without_places(item, key) for item in value]
    return PurePath(value).name if isinstance(value, str) and _leads_out(value) else value


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
    """Raises ValueError when what is to be resumed is something else; the message lists in what it differs.

    Args:
        place: its folder.
        holds: what the folder then holds, for the message: "a run with another recipe".
        before, now: what was begun with, and what is asked for.
        may_change: dotted keys that may differ.
        words: what to say of keys whose values say nothing to a reader.
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


def _on_the_hub(data: Mapping[str, Any]) -> bool:
    root = data.get("root")
    return data.get("name") == "huggingface" and isinstance(root, str) and not expand_user(root).exists()


def _leads_out(text: str) -> bool:
    return expand_user(text).is_absolute() or ".." in PurePath(text).parts
