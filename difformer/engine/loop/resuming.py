"""Which saved state a run resumes from."""

from collections.abc import Callable, Collection, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

from difformer.checkpoints import CheckpointError
from difformer.config.provenance import carried, check_unchanged, without_places
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
        before["backbone"] = now["backbone"] = plain(recipe).get("backbone")
    check_unchanged(
        folder.path, "a run with another recipe", comparable(before), comparable(now), may_change=may_change
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
