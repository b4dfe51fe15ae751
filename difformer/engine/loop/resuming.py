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

    It is the previous state if the last one is damaged, or was not yet in its place when the run was killed.

    Raises:
        CheckpointError: no state that exists can be used.
        ValueError: it is of a recipe whose comparable values differ.
    """
    saved: SavedState | None = None
    damage: list[str] = []
    for file in (folder.state, folder.previous):
        if saved is None and file.exists():
            try:
                saved = SavedState(TrainingState.load(file), file)
            except CheckpointError as error:
                damage.append(str(error))
    if saved is None:
        if damage:
            raise CheckpointError(f"{'; '.join(damage)}. Restore a whole one, choose another --output, or --overwrite")
        return None
    if damage:
        _log.warning("%s; resuming from the state before it, %s", damage[0], saved.file)
    before, now = without_places(saved.state.recipe), carried(recipe)
    if before.get("backbone") == now.get("backbone"):
        # Its location, which is not in the state, is needed to name its blocks.
        before["backbone"] = now["backbone"] = plain(recipe).get("backbone")
    check_unchanged(
        folder.path, "a run with another recipe", comparable(before), comparable(now), may_change=may_change
    )
    return saved
