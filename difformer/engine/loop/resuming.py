"""Which saved state a run resumes from."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

from difformer.checkpoints import CheckpointError
from difformer.config.provenance import carried, changed_keys, without_places
from difformer.config.reading import plain
from difformer.engine.loop.state import TrainingState
from difformer.engine.runtime.run_folder import RunFolder

_log = getLogger(__name__)


class SavedState(NamedTuple):
    """A state to resume from, and the file it is in."""

    state: TrainingState
    file: Path


def saved_state(
    folder: RunFolder,
    recipe: Any,
    may_change: Collection[str],
    comparable: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> SavedState | None:
    """The state to resume from, or None where there is none.

    That is the one before where the last one is damaged, or was not yet in its place when the run was killed.

    Raises:
        CheckpointError: none of those that are there can be used.
        ValueError: it is of another recipe, in comparable values.
    """
    saved = _last_whole(folder)
    if saved is None:
        return None
    before, now = without_places(saved.state.recipe), carried(recipe)
    if before.get("backbone") == now.get("backbone"):
        # Where it lies, which is not in the state, tells what its blocks are called.
        before["backbone"] = now["backbone"] = plain(asdict(recipe)).get("backbone")
    changed = changed_keys(comparable(before), comparable(now))
    other = {key: values for key, values in changed.items() if key not in may_change}
    if other:
        listed = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in other.items())
        raise ValueError(
            f"{folder.path} holds a run with another recipe: {listed}. Give the same to resume it, choose another "
            f"--output, or --overwrite"
        )
    return saved


def _last_whole(folder: RunFolder) -> SavedState | None:
    damage: list[str] = []
    for file in (folder.state, folder.previous):
        if not file.exists():
            continue
        try:
            state = TrainingState.load(file)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            _log.warning("%s; resuming from the state before it, %s", damage[0], file)
        return SavedState(state, file)
    if damage:
        raise CheckpointError(f"{'; '.join(damage)}. Bring a whole one back, choose another --output, or --overwrite")
    return None
