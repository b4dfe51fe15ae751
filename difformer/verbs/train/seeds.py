"""The same recipe trained once for each of several seeds, in folders of one folder."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from difformer.config.provenance import check_unchanged
from difformer.config.reading import plain, read_yaml
from difformer.engine.config.build import build_task
from difformer.engine.config.fitting import with_named_taps
from difformer.engine.config.recipe import Recipe
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.progress import Stages
from difformer.engine.runtime.resources import Resources, release_memory
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import expand_user
from difformer.verbs.train.train import MAY_CHANGE, train


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
        FileExistsError: the output is the folder of a single run.
        ValueError: the runs that are there for other seeds have another recipe.
        And as `train`.
    """
    recipes, found = recipes_of_seeds(recipe), []
    check_seeds(recipe, recipes)
    # Before the first stage is shown: it finds the other processes.
    accelerator, resources = create_accelerator(recipe.training.precision), Resources()
    with closing(Stages("training", [1.0] * len(recipes), shown=accelerator.is_main_process)) as stages:
        for seed, one in zip(recipe.seeds, recipes, strict=True):
            with stages.stage(f"seed {seed}"):
                found.append(train(one, overwrite=overwrite, more_to_come=one is not recipes[-1], resources=resources))
            release_memory()
    return found


def check_seeds(recipe: Recipe, recipes: Sequence[Recipe]) -> None:
    """Raises, before anything is trained, where runs of seeds could not stand beside each other in the output."""
    output = RunFolder(recipe.output)
    if output.recipe.exists():
        raise FileExistsError(f"{output.path} is the folder of a single run; give another --output for several seeds")
    for one in recipes:
        RunFolder(one.output).check()
    given = {expand_user(one.output).name for one in recipes}
    for place in sorted(output.path.glob("seed*/recipe.yaml")):
        if place.parent.name not in given:
            before, now = with_named_taps(read_yaml(place), family=recipe.backbone.family), plain(recipes[0])
            now = with_named_taps(now, family=recipe.backbone.family)
            holds = f"a run of another recipe in {place.parent.name}"
            check_unchanged(output.path, holds, before, now, may_change=(*MAY_CHANGE, "training.seed", "data.seed"))


def seed_lines(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the console says at the end: each metric of the task with mean and standard deviation over the seeds."""
    kept = "best" if recipe.evaluation.select == "best" else "last"
    places = [("test", ""), (kept, "validation_"), (kept, "train_")]
    # The first of them where something was measured.
    record, prefix = next(
        (place, prefix)
        for place, prefix in places
        if any(name.startswith(prefix) for name in results[0].get(place, ()))
    )
    lines = [f"{'measured on':<15}{prefix.rstrip('_') or recipe.evaluation.test}"]
    for name, metric in build_task(recipe).metrics.items():
        values = [result[record].get(f"{prefix}{name}") for result in results]
        # Some metrics have no number for some data, as the fifth best of three classes.
        if None not in values:
            spread = f" ± {metric.text(stdev(values))}" if len(values) > 1 else ""
            lines.append(f"{metric.title or name:<15}{metric.text(mean(values))}{spread}")
    seeds = ", ".join(map(str, recipe.seeds))
    return [*lines, f"{'seeds':<15}{seeds}", f"{'results in':<15}{expand_user(recipe.output)}"]
