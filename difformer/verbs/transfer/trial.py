"""A trial of a transfer suite: its runs with their cost, then two steps of each head."""

from typing import Any

from difformer.backbones import Backbone
from difformer.data.fake import FakeImages
from difformer.engine.config.build import build_dataset, outline_backbone, outline_classifier
from difformer.engine.config.recipe import BackboneConfig, Recipe
from difformer.engine.cost.costs import Costs, costs, human_flops
from difformer.tasks import find_task
from difformer.verbs.train.dry_run import try_out
from difformer.verbs.transfer.suite import PlannedRun, Suite, TransferRecipe


def try_out_suite(recipe: TransferRecipe, *, fake_data: bool = False) -> float:
    """Prints every run of a suite and its cost, then tries each head out on the first data set. Writes nothing.

    Args:
        recipe: of the suite.
        fake_data: use random images and weights in place of the recipe's.

    Returns:
        Operations of all runs, with features computed live.

    Raises:
        ValueError, OSError, ImportError: a data set cannot be read, or a recipe is wrong.
    """
    suite = Suite(recipe)
    opened: dict[str, Any] = {}
    backbones: dict[BackboneConfig, Backbone] = {}
    total = 0.0
    for pair in suite.pairs:
        found: Costs | None = None
        for run in (*suite.choices(*pair), *suite.finals(*pair)):
            images = _images(run.recipe, opened, fake_data)
            if found is None:
                if run.recipe.backbone not in backbones:
                    backbones[run.recipe.backbone] = outline_backbone(run.recipe.backbone)
                backbone = backbones[run.recipe.backbone]
                classifier = outline_classifier(run.recipe, images["train"].class_names, backbone)
                found = costs(classifier, run.recipe.data.size)
            total += _list(run, images, found)
    print(f"{len(suite)} runs, {human_flops(total)} for features computed live\n", flush=True)
    for head in recipe.heads:
        print(f"{head}:", flush=True)
        try_out(suite.finals(suite.pairs[0][0], head)[0].recipe, fake_data=fake_data)
    return total


def _list(run: PlannedRun, images: dict[str, Any], found: Costs) -> float:
    """Prints a run and its cost; returns its operations."""
    train = len(images["train"])
    epochs = run.recipe.lengthened(train).training.epochs
    measured = sum(len(dataset) for split, dataset in images.items() if split != "train")
    if run.recipe.evaluation.validation is not None:
        measured *= epochs
    flops = epochs * train * (found.flops + found.gradient_flops) + measured * found.flops
    print(f"{run.name:<60} {epochs} epochs × {train:,} images, {found.trained:,} parameters, {human_flops(flops)}")
    return flops


def _images(recipe: Recipe, opened: dict[str, Any], fake_data: bool) -> dict[str, Any]:
    """The splits of a run, each opened once."""
    names = ["train", *(name for name in (recipe.evaluation.validation, recipe.evaluation.test) if name)]
    splits = {}
    for split in names:
        key = f"{split} {recipe.data}"
        if key not in opened:
            label = find_task(recipe.task.name, recipe.task.arguments).stand_in()
            fake = FakeImages(recipe.data, split, 4 * recipe.training.batch_size, label=label)
            opened[key] = fake if fake_data else build_dataset(recipe.data, split)
        splits[split] = opened[key]
    return splits
