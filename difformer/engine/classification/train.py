"""A training run from a recipe to a folder with a classifier; the body of `difformer train`."""

from typing import Any

from difformer.engine.classification.run import Run
from difformer.engine.loop.course import carry_out
from difformer.engine.recipes.training import Recipe

# What a run may go on with another value of: none of it changes the result.
MAY_CHANGE = (
    "output", "init", "trackers", "training.workers", "training.save_minutes", "evaluation.batch_size", "data.root",
    "data.download", "data.check_images", "backbone.folder", "backbone.download", "backbone.attention",
    "backbone.gradient_checkpointing", "extractor.chunk_size", "cache.folder",
)  # fmt: skip


def train(recipe: Recipe, *, overwrite: bool = False, more_to_come: bool = False) -> dict[str, Any]:
    """Trains, or goes on with a run that was interrupted; that ends as one that was not.

    Args:
        recipe: everything about the run.
        overwrite: start anew although there is a run in the folder.
        more_to_come: other runs follow in these processes, so they stay connected.

    Returns:
        The results, as in `results.json`.

    Raises:
        ValueError: the recipe or the data is wrong, or the folder holds a run with another recipe.
        OSError: something cannot be read or written, or the classifier to start from is not there.
        CheckpointError: it is damaged, or of another backbone.
        TrainingError: the loss or a weight is not finite, or a data worker died.
        Stopped: a signal asked to stop; the state is saved.
    """
    return carry_out(recipe, Run, MAY_CHANGE, overwrite=overwrite, more_to_come=more_to_come)
