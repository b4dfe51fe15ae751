"""Everything on one data set with masks or boxes, from raw pixels to a page; `difformer quickstart --task …`."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from difformer.config.options import unknown_key
from difformer.config.provenance import check_unchanged
from difformer.config.reading import build, create_parser, overlay, plain, read_values, read_yaml
from difformer.data import ImageDataset
from difformer.data.subset import TEST
from difformer.engine.config.build import outline_classifier
from difformer.engine.config.recipe import Recipe
from difformer.engine.runtime.batches import check_batch_statistics
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.progress import Stages
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.run_folder import RunFolder, environment
from difformer.files import expand_user
from difformer.report.page import Paragraph, Picture, Section
from difformer.tasks import DenseTask
from difformer.tasks.registry import check_labels, find_task, is_dense
from difformer.verbs.compare.compare import check_same_images
from difformer.verbs.compare.dense import write_dense_comparison
from difformer.verbs.compare.measured import Method, read_measured
from difformer.verbs.quickstart.plan import RECIPES, QuickstartConfig, drawn
from difformer.verbs.train.train import train

PAGE, RECORD = "report.html", "quickstart.yaml"
# The method whose images are shown, of the first seed: fixed beforehand, not the best on the test images.
SHOWN = "difformer"


@dataclass(frozen=True)
class _File:
    """The content of a YAML file.

    Attributes:
        title, about: of the page.
        titles: of the methods, by name, in the order of the table. The first is what the others are compared with.
        base: sections of a recipe that all methods have.
        heads: by method, what differs.
    """

    title: str
    about: str
    titles: Mapping[str, str]
    base: Mapping[str, Any]
    heads: Mapping[str, Mapping[str, Any]]


def quickstart_dense(config: QuickstartConfig, *, overwrite: bool = False) -> Path:
    """Trains and measures every method, and writes a table and a page. What is done already is not done again.

    Args:
        config: with a task of masks or boxes.
        overwrite: start anew although there is a quickstart in the folder.

    Returns:
        The page; the runs and `compare.json` lie beside it.

    Raises:
        ValueError: no data, an unknown key, data that the task does not predict, or the folder holds a quickstart of
            other images or recipes.
        And as `train`.
    """
    if config.data is None:
        raise ValueError(f"give --data, the folder of images for the task {config.task}")
    file = build(_File, read_yaml(config.recipe or RECIPES / f"{config.task}.yaml"))
    output = expand_user(config.output or f"runs/quickstart-{config.task}-{expand_user(config.data).resolve().name}")
    recipes = _recipes(config, file)
    folder = RunFolder(output, record=RECORD)
    folder.check()
    resources = Resources()
    accelerator = create_accelerator("no")
    task, images = _check(config, recipes, resources, accelerator)
    made_with = {
        "recipes": _digest(json.dumps({name: _placeless(one) for name, one in recipes.items()}, sort_keys=True)),
        "weights": _digest(" ".join(resources.backbone(one.backbone).digest for one in recipes.values())),
        "images": _digest(" ".join(split.digest for split in images)),
    }
    record = plain(config) | {"made_with": made_with}
    if not overwrite and folder.recipe.exists():
        known = read_yaml(folder.recipe)
        may_change = ("output", "seeds", "diffeed_seeds", "data", "recipe")
        check_unchanged(folder.path, "another quickstart", known, record, may_change=may_change)
    folder.claim()
    try:
        if overwrite:
            # First, since they would be taken for results of what the record then says.
            for name in recipes:
                for run in output.glob(f"{name}-[0-9]*"):
                    shutil.rmtree(run)
        folder.write_text(RECORD, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
        folder.write_json("environment.json", environment(1, accelerator.device))
        methods = _measure(config, file, recipes, output, resources)
        check_same_images([run for method in methods for run in method.runs])
        title = file.title.replace("{name}", expand_user(config.data).resolve().name)
        trained = [name for name, recipe in recipes.items() if _count(config, recipe)]
        shown = output / f"{SHOWN if SHOWN in trained else trained[-1]}-0"
        extra = _sections(shown, file.titles)
        lines = write_dense_comparison(
            output, task, methods, seed=0, page=PAGE, title=title, lead=file.about, sections=extra
        )
        print("\n".join([*lines, str(output / PAGE)]), flush=True)
        return output / PAGE
    finally:
        folder.release()
        accelerator.end_training()


def _check(
    config: QuickstartConfig, recipes: Mapping[str, Recipe], resources: Resources, accelerator: Any
) -> tuple[DenseTask, list[ImageDataset]]:
    """The task, and training and test images, which must suit all methods, before the first is trained."""
    first = next(iter(recipes.values()))
    if not any(_count(config, recipe) for recipe in recipes.values()):
        raise ValueError("all heads are DifFeed's and diffeed_seeds is 0, so nothing would be trained; give at least 1")
    task = find_task(first.task.name, first.task.arguments)
    if not is_dense(task):
        raise ValueError(f"task.name: {first.task.name} is not of masks, boxes or points; leave out --task")
    images = resources.splits(first.data, ("train", TEST))
    for split in images.values():
        check_labels(task, split)
    for name, recipe in recipes.items():
        if recipe.task.name != first.task.name or recipe.evaluation.test != TEST:
            raise ValueError(f"heads.{name} must have the task {first.task.name} and evaluation.test: {TEST}, as all")
        classifier = outline_classifier(recipe, images["train"].class_names)
        check_batch_statistics(classifier, len(images["train"]), recipe.training, accelerator)
    return task, list(images.values())


def _count(config: QuickstartConfig, recipe: Recipe) -> int:
    """Seeds of a method."""
    return config.diffeed_seeds if recipe.extractor.feedback_taps else config.seeds


def _placeless(recipe: Recipe) -> Any:
    """A recipe without the places of its data and output."""
    return plain(replace(recipe, output="", data=replace(recipe.data, root=None)))


def _recipes(config: QuickstartConfig, file: _File) -> dict[str, Recipe]:
    """By method, without output and seed."""
    if unknown := [name for name in file.titles if name not in file.heads]:
        raise unknown_key(f"titles.{unknown[0]}", [f"titles.{name}" for name in file.heads])
    parser = create_parser(Recipe, "quickstart", "", {})
    found = {}
    for name in file.heads:
        if name not in file.titles:
            raise ValueError(f"titles must name every method; there is none for {name}")
        recipe = read_values(parser, Recipe, overlay(Recipe, file.base, file.heads[name]))
        data = replace(recipe.data, root=config.data, k_shot=config.k_shot or recipe.data.k_shot)
        found[name] = replace(recipe, data=data)
    if not found:
        raise ValueError("heads must name at least one method")
    return {name: found[name] for name in file.titles}


def _measure(
    config: QuickstartConfig,
    file: _File,
    recipes: Mapping[str, Recipe],
    output: Path,
    resources: Resources,
) -> list[Method]:
    """Trains and evaluates all seeds of all methods."""
    # A pass through the backbone for each image and epoch, and of DifFeed four: forwards twice, and back.
    costs = [
        float(recipe.training.epochs * max(1, len(recipe.extractor.timesteps)))
        * (4 if recipe.extractor.feedback_taps else 1)
        for recipe in recipes.values()
        for _ in range(_count(config, recipe))
    ]
    methods = []
    stages = Stages("quickstart", costs)
    try:
        for name, recipe in recipes.items():
            runs = []
            for seed in range(_count(config, recipe)):
                run = output / f"{name}-{seed}"
                training = replace(recipe.training, seed=seed)
                own = replace(recipe, output=str(run), data=drawn(recipe.data, seed), training=training)
                with stages.stage(f"{file.titles[name]}, seed {seed}"):
                    if RunFolder(run).finished() is None:
                        train(own, more_to_come=True, resources=resources)
                runs.append(read_measured(str(run), TEST, f"{name}-{seed}"))
            if runs:
                methods.append(Method(file.titles[name], tuple(runs)))
    finally:
        stages.close()
    return methods


def _sections(shown: Path, titles: Mapping[str, str]) -> list[Section]:
    """Images beside what a method found in them, from its evaluation."""
    pictures = sorted((shown / f"eval-{TEST}").glob("example-*.png"))
    method = titles.get(shown.name.rpartition("-")[0], shown.name)
    text = f"By {method}, the first seed: the worst images first, then some in the middle, then the best."
    blocks = [Picture(path, f"An image, its truth and what {method} found") for path in pictures]
    return [Section("Images", [Paragraph(text), *blocks])] if blocks else []


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
