"""A training run from a recipe to a folder with a classifier; the body of `difformer train`."""

import shlex
from collections.abc import Mapping
from functools import partial
from typing import Any

from difformer.engine.config.build import build_task
from difformer.engine.config.fitting import with_named_taps
from difformer.engine.config.recipe import Recipe
from difformer.engine.loop.course import carry_out
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.run_folder import RunFolder
from difformer.tasks.registry import is_dense
from difformer.verbs.train.run import Run

# What a run may resume with another value of: none of it changes the result.
MAY_CHANGE = (
    "output", "init", "trackers", "training.workers", "training.save_minutes", "evaluation.batch_size", "data.root",
    "data.download", "data.check_images", "backbone.folder", "backbone.download", "backbone.attention",
    "backbone.gradient_checkpointing", "extractor.chunk_size", "cache.folder",
)  # fmt: skip


def train(
    recipe: Recipe, *, overwrite: bool = False, more_to_come: bool = False, resources: Resources | None = None
) -> dict[str, Any]:
    """Trains, or resumes a run that was interrupted; that ends as one that was not.

    Args:
        recipe: everything about the run.
        overwrite: start anew although there is a run in the folder.
        more_to_come: other runs follow in these processes, so they stay connected.
        resources: shared with other runs of this process.

    Returns:
        The results, as in `results.json`.

    Raises:
        ValueError: the recipe or the data is wrong, or the folder holds a run with another recipe.
        OSError: something cannot be read or written, or the classifier to start from is not there.
        CheckpointError: it is damaged, or of another backbone.
        TrainingError: the loss or a weight is not finite, or a data worker died.
        Stopped: a signal asked to stop; the state is saved.
    """
    if recipe.seeds:
        raise ValueError("seeds: of one run there is one, training.seed; several are trained by train_seeds")
    return carry_out(
        recipe,
        partial(Run, resources=resources),
        MAY_CHANGE,
        comparable=partial(with_named_taps, family=recipe.backbone.family),
        overwrite=overwrite,
        more_to_come=more_to_come,
    )


def closing_lines(recipe: Recipe, results: Mapping[str, Any]) -> list[str]:
    """What the console says at the end: the score with its interval, the folder, and what can be done next."""
    folder = RunFolder(recipe.output)
    task, test = build_task(recipe), results.get("test")
    if test is not None:
        lines = [f"{recipe.evaluation.test:<15}{test['num_images']:,} images", *task.lines(test)]
    else:
        record = results["best" if recipe.evaluation.select == "best" else "last"]
        name, metric = next(iter(task.metrics.items()))
        scores = {f"validation_{name}": recipe.evaluation.validation, f"train_{name}": "train", "train_loss": "train"}
        key = next(key for key in scores if key in record)
        score = (
            f"{record[key]:6.4g} loss"
            if key == "train_loss"
            else f"{metric.text(record[key], 6)} {metric.title or name}"
        )
        lines = [
            f"{scores[key]:<15}{score} in epoch {record['epoch']}",
            f"{'test':<15}not measured: give evaluation.test, or `difformer eval`",
        ]
    written = "--output OUT" if is_dense(task) else "--csv out.csv"
    run, classifier, backbone = map(shlex.quote, (str(folder.path), str(folder.classifier), recipe.backbone.name))
    trust = f" --trust {' '.join(recipe.own_packages)}" if recipe.own_packages else ""
    return [
        *lines,
        f"{'results in':<15}{folder.path}",
        f"{'next':<15}difformer eval {run}{trust}",
        f"{'':<15}difformer predict {classifier} FOLDER {written} --backbone {backbone}{trust}",
    ]
