"""The same recipe trained once for each of several seeds, in folders of one folder."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from accelerate import PartialState

from difformer.engine.config.build import build_task
from difformer.engine.config.recipe import Recipe
from difformer.engine.runtime.progress import Stages
from difformer.engine.runtime.resources import Resources
from difformer.files import expand_user
from difformer.verbs.train.train import train


def recipes_of_seeds(recipe: Recipe) -> list[Recipe]:
    """A recipe for each seed, whose run lies in `seedN` of the output; the recipe itself where it names no seeds.

    A seed is that of the head, the order and dropout; where only some labels are used, also of which these are.
    """
    drawn = recipe.data.has_label_subset
    return [
        replace(
            recipe,
            seeds=(),
            output=str(Path(recipe.output) / f"seed{seed}"),
            training=replace(recipe.training, seed=seed),
            data=replace(recipe.data, seed=seed) if drawn else recipe.data,
        )
        for seed in recipe.seeds
    ] or [recipe]


def train_seeds(recipe: Recipe, *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Trains a run for each of the recipe's seeds, one after another; runs that are finished stay as they are.

    Args:
        recipe: with `seeds`.
        overwrite: start anew although there are runs in the folders.

    Returns:
        The results of each run, as `train` gives them.

    Raises:
        As `train`.
    """
    resources, recipes, found = Resources(), recipes_of_seeds(recipe), []
    with closing(Stages("training", [1.0] * len(recipes), shown=PartialState().is_main_process)) as stages:
        for seed, one in zip(recipe.seeds, recipes, strict=True):
            with stages.stage(f"seed {seed}"):
                found.append(train(one, overwrite=overwrite, more_to_come=one is not recipes[-1], resources=resources))
    return found


def seed_lines(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the console says at the end: each metric of the task with mean and standard deviation over the seeds."""
    kept = "best" if recipe.evaluation.select == "best" else "last"
    record, prefix = ("test", "") if recipe.evaluation.test is not None else (kept, "validation_")
    lines = []
    for name, metric in build_task(recipe).metrics.items():
        values = [result[record].get(f"{prefix}{name}") for result in results]
        # Some metrics have no number for some data, as the fifth best of three classes.
        if None not in values:
            spread = f" ± {metric.text(stdev(values))}" if len(values) > 1 else ""
            lines.append(f"{metric.title or name:<15}{metric.text(mean(values))}{spread}")
    seeds = ", ".join(map(str, recipe.seeds))
    return [*lines, f"{'seeds':<15}{seeds}", f"{'results in':<15}{expand_user(recipe.output)}"]
