"""A k-NN or linear classifier on pooled features; the body of `difformer probe`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from difformer.analysis.metrics import (
    ClassificationMetrics,
    ImageScores,
    classification_metrics,
    find_metric,
    image_scores,
)
from difformer.analysis.probes import (
    TOLD,
    Candidate,
    Labelled,
    best,
    check_criterion,
    compare,
    create_probe,
    find_criterion,
)
from difformer.config.provenance import carried
from difformer.config.reading import dump
from difformer.data import ImageDataset
from difformer.engine.config.build import Extractor, build_extractor
from difformer.engine.config.evaluation import choice_note
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.loop.trainer import Clock
from difformer.engine.runtime.outputs import evaluate
from difformer.engine.runtime.processes import create_accelerator, on_main, solver_device
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.result_folder import ResultFolder, describe_split, table_digests, write_json
from difformer.engine.runtime.run_folder import environment
from difformer.features.conditioning import warn_of_labels
from difformer.features.pooling import PooledFeatures
from difformer.files import sealed
from difformer.tasks import Classification, Outputs, Task
from difformer.tasks.classification.tables import TABLES, readable, write_tables
from difformer.tasks.registry import check_labels
from difformer.verbs.probe.recipe import ProbeRecipe

RESULTS, RECIPE = "results.json", "recipe.yaml"
# Metrics, and what the outputs of a method must give for them to have a meaning.
_NEEDED = {"nll": "probabilities", "ece": "confidence"}


@dataclass(frozen=True, eq=False)
class _Split:
    """The images of a split and their pooled features."""

    images: ImageDataset
    outputs: Outputs

    def labelled(self, device: torch.device) -> Labelled:
        return Labelled(torch.from_numpy(self.outputs.values).to(device), torch.from_numpy(self.outputs.labels))


@dataclass(frozen=True, eq=False)
class _Test:
    """The chosen settings on the test split."""

    split: _Split
    metrics: ClassificationMetrics
    scores: ImageScores


@dataclass(frozen=True, eq=False)
class Probed:
    """What a probe found.

    Attributes:
        results: the content of `results.json` without its digests.
        metrics: on the test split; None without one.
    """

    results: dict[str, Any]
    metrics: ClassificationMetrics | None


def run_probe(
    recipe: ProbeRecipe, *, overwrite: bool = False, resources: Resources | None = None
) -> dict[str, Any] | None:
    """As `probe`, but warns if features are told the labels, and returns the results only."""
    on_main(create_accelerator(recipe.precision), partial(warn_of_labels, recipe.extractor.conditioning))
    found = probe(recipe, overwrite=overwrite, resources=resources)
    return None if found is None else found.results


def probe(recipe: ProbeRecipe, *, overwrite: bool = False, resources: Resources | None = None) -> Probed | None:
    """Reads each image's features once, chooses settings on the validation split, and measures the test split once.

    Args:
        recipe: everything about the probe.
        overwrite: replace results that are there.
        resources: shared with other runs of this process.

    Returns:
        What it found, on the main process; None on the others, which only read features.

    Raises:
        ValueError: a value in the recipe or in the data.
        OSError: something cannot be read or written.
        ImageError: an image cannot be read, and the recipe does not skip such images.
    """
    resources = resources or Resources()
    folder = ResultFolder(recipe.output, (RESULTS, RECIPE, *TABLES))
    folder.check(overwrite=overwrite)
    images = open_splits(recipe, resources)
    accelerator = create_accelerator(recipe.precision)
    backbone = resources.backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    extractor = build_extractor(recipe.extractor, backbone, recipe.data.size, len(images["train"].class_names))
    model = PooledFeatures(extractor, recipe.pool, normalize=recipe.normalize)
    clock = Clock()
    splits = {name: _read(recipe, model, name, dataset, accelerator) for name, dataset in images.items()}
    seconds = clock.seconds
    if not accelerator.is_main_process:
        return None
    candidates, chosen, test = _choose(recipe, splits, solver_device(accelerator.device))
    results = _results(recipe, splits, candidates, chosen, test, model.extractor) | {
        "images_per_second": round(sum(len(s.outputs.ids) for s in splits.values()) / max(seconds, 1e-9), 2),
        "recipe": carried(recipe),
        "environment": environment(accelerator.num_processes, accelerator.device),
    }
    _write(recipe, folder, results, test)
    return Probed(results, None if test is None else test.metrics)


def open_splits(recipe: ProbeRecipe, resources: Resources, task: Task | None = None) -> dict[str, ImageDataset]:
    """All splits without augmentation, `train` first, checked before the first image is read.

    Raises:
        ValueError: a criterion that does not suit the method or the number of classes, images without labels, or fewer
            images than neighbours.
        ImportError: the criterion's module cannot be imported.
    """
    find_criterion(recipe.criterion, recipe.method)
    images = resources.splits(recipe.data, ("train", recipe.validation, recipe.test))
    for dataset in images.values():
        check_labels(task or Classification(), dataset)
    check_criterion(recipe.criterion, len(images["train"].class_names))
    most = max(recipe.ks or (0,))
    if recipe.method == "knn" and most > len(images["train"]):
        raise ValueError(f"ks: {most} neighbours were asked for, but there are {len(images['train'])} training images")
    return images


def _read(recipe: ProbeRecipe, model: PooledFeatures, split: str, images: ImageDataset, accelerator: Any) -> _Split:
    outputs = evaluate(
        model,
        images,
        collate_readable,
        accelerator,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        progress=True,
        title=f"reading {split}",
    )
    return _Split(images, outputs)


def _choose(
    recipe: ProbeRecipe, splits: Mapping[str, _Split], device: torch.device
) -> tuple[list[Candidate], Candidate, _Test | None]:
    """Compares all settings on the validation split, and measures the best ones on the test split, if there is one.

    The test split plays no part in the choice.
    """
    names = splits["train"].images.class_names
    train, validation = (splits[name].labelled(device) for name in ("train", recipe.validation))
    probe = create_probe(
        recipe.method,
        ks=recipe.ks,
        temperatures=recipe.temperatures,
        strengths=recipe.strengths,
        rates=recipe.rates,
    )
    candidates = compare(probe, train, validation, len(names), criterion=recipe.criterion)
    chosen = best(candidates, larger_is_better=find_metric(recipe.criterion).larger_is_better)
    if recipe.test is None:
        return candidates, chosen, None
    test = splits[recipe.test].labelled(device)
    fitted = probe.only(chosen.settings).fit(train.joined(validation) if recipe.refits else train, len(names))
    [(_, logits)] = fitted(test.features)
    metrics = classification_metrics(logits, test.labels, names, extra=(recipe.criterion,))
    return candidates, chosen, _Test(splits[recipe.test], metrics, image_scores(logits, test.labels))


def _results(
    recipe: ProbeRecipe,
    splits: Mapping[str, _Split],
    candidates: Sequence[Candidate],
    chosen: Candidate,
    test: _Test | None,
    extractor: Extractor,
) -> dict[str, Any]:
    """What was chosen and why, what it reached on the test split, and from which features and images."""
    left_out = [name for name, told in _NEEDED.items() if told not in TOLD[recipe.method]]
    measured = {} if test is None else test.metrics.to_dict(tables=False)
    return {
        "method": recipe.method,
        "candidates": [{**candidate.settings, "validation": candidate.accuracy} for candidate in candidates],
        "criterion": recipe.criterion,
        "chosen": dict(chosen.settings),
        "validation": chosen.accuracy,
        "refit": recipe.refits,
        "test": {name: value for name, value in measured.items() if name not in left_out} or None,
        "note": choice_note(recipe.data, recipe.validation),
        "features": [asdict(key) for key in extractor.specs],
        "dimensions": splits["train"].outputs.values.shape[1],
        "backbone": {"name": extractor.backbone.name, "sha256": extractor.backbone.digest},
        "data": [describe_split(name, s.images, s.outputs.ids, s.outputs.skipped) for name, s in splits.items()],
    }


def _write(recipe: ProbeRecipe, folder: ResultFolder, results: Mapping[str, Any], test: _Test | None) -> None:
    """Writes the results; prints the candidates with the chosen one marked, and the test metrics."""
    with folder.write() as temporary:
        tables = {}
        if test is not None:
            split, probabilities = test.split, "confidence" in TOLD[recipe.method]
            write_tables(temporary, test.metrics, test.scores, split.outputs, split.images, probabilities=probabilities)
            tables = table_digests(temporary)
        (temporary / RECIPE).write_text(dump(recipe), encoding="utf-8")
        write_json(temporary / RESULTS, sealed({**results, "tables": tables}))
    columns = list(results["chosen"])
    lines = ["  ".join(f"{name:>11}" for name in [*columns, recipe.validation])]
    metric = find_metric(recipe.criterion)
    for candidate in results["candidates"]:
        numbers = [f"{candidate[name]:>11g}" for name in columns] + [metric.text(candidate["validation"], 11)]
        mark = "  chosen" if all(candidate[name] == results["chosen"][name] for name in columns) else ""
        lines.append("  ".join(numbers) + mark)
    if results["note"] is not None:
        lines.append(results["note"])
    if results["test"] is not None:
        lines += [f"{recipe.test:<15}{results['test']['num_images']:,} images", *readable(results["test"])]
    print("\n".join([*lines, f"results in {folder.path}"]), flush=True)
