"""A k-NN or linear classifier on pooled features; the body of `difformer probe`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    Probe,
    best,
    check_criterion,
    compare,
    create_probe,
    find_criterion,
)
from difformer.config.provenance import carried
from difformer.config.reading import dump
from difformer.data import ImageDataset
from difformer.engine.config.build import build_extractor
from difformer.engine.config.evaluation import choice_note
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.loop.trainer import Clock
from difformer.engine.runtime.outputs import evaluate
from difformer.engine.runtime.processes import create_accelerator, solver_device
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.result_folder import ResultFolder, describe_split, table_digests, write_json
from difformer.engine.runtime.run_folder import environment
from difformer.features.conditioning import warn_of_labels
from difformer.features.pooling import PooledFeatures
from difformer.files import sealed
from difformer.tasks import Classification, Outputs
from difformer.tasks.classification.tables import TABLES, readable, write_tables
from difformer.tasks.task import check_labels
from difformer.verbs.probe.recipe import ProbeRecipe

RESULTS, RECIPE = "results.json", "recipe.yaml"
# Numbers that say nothing of a method whose outputs do not tell this.
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
    """What the settings that were chosen give on the test split."""

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
    """As `probe`, of which it gives the results."""
    found = probe(recipe, overwrite=overwrite, resources=resources)
    return None if found is None else found.results


def probe(recipe: ProbeRecipe, *, overwrite: bool = False, resources: Resources | None = None) -> Probed | None:
    """Reads the features of every split, each image once; chooses settings on the validation split alone, and measures
    the test split once.

    Args:
        recipe: everything about the probe.
        overwrite: replace results that are there.
        resources: shared with other runs of this process.

    Returns:
        What it found, on the main process; None on the others, which only help to read features.

    Raises:
        ValueError: a value in the recipe or in the data.
        OSError: something cannot be read or written.
        ImageError: an image cannot be read, and such are not to be skipped.
    """
    resources = resources or Resources()
    folder = ResultFolder(recipe.output, (RESULTS, RECIPE, *TABLES))
    folder.check(overwrite=overwrite)
    metric = find_criterion(recipe.criterion, recipe.method)
    images = _open_splits(recipe, resources)
    accelerator = create_accelerator(recipe.precision)
    backbone = resources.backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    extractor = build_extractor(recipe.extractor, backbone, recipe.data.size, len(images["train"].class_names))
    if accelerator.is_main_process:
        warn_of_labels(recipe.extractor.conditioning)
    model = PooledFeatures(extractor, recipe.pool, normalize=recipe.normalize)
    clock = Clock()
    splits = {name: _read(recipe, model, name, dataset, accelerator) for name, dataset in images.items()}
    seconds = clock.seconds
    if not accelerator.is_main_process:
        return None

    device = solver_device(accelerator.device)
    candidates = _candidates(recipe, splits, device)
    chosen = best(candidates, larger_is_better=metric.larger_is_better)
    test = None if recipe.test is None else _measure(recipe, chosen, splits, device)
    results = _decision(recipe, candidates, chosen, test) | {
        "note": choice_note(recipe.data, recipe.validation),
        "features": [asdict(key) for key in model.extractor.specs],
        "dimensions": splits["train"].outputs.values.shape[1],
        "backbone": {"name": backbone.name, "sha256": backbone.digest},
        "data": [describe_split(name, s.images, s.outputs.ids, s.outputs.skipped) for name, s in splits.items()],
        "images_per_second": round(sum(len(s.outputs.ids) for s in splits.values()) / max(seconds, 1e-9), 2),
        "recipe": carried(recipe),
        "environment": environment(accelerator.num_processes, accelerator.device),
    }
    _write(recipe, folder, results, test)
    print("\n".join([*_table(recipe, results), f"results in {folder.path}"]), flush=True)
    return Probed(results, None if test is None else test.metrics)


def _open_splits(recipe: ProbeRecipe, resources: Resources) -> dict[str, ImageDataset]:
    """All of them without augmentation, before the first image is read."""
    images = resources.splits(recipe.data, ("train", recipe.validation, recipe.test))
    for dataset in images.values():
        check_labels(Classification(), dataset)
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


def _candidates(recipe: ProbeRecipe, splits: Mapping[str, _Split], device: torch.device) -> list[Candidate]:
    """All settings with the criterion on the validation split. The test split plays no part."""
    train, validation = (splits[name].labelled(device) for name in ("train", recipe.validation))
    classes = len(splits["train"].images.class_names)
    return compare(_probe(recipe), train, validation, classes, criterion=recipe.criterion)


def _measure(recipe: ProbeRecipe, chosen: Candidate, splits: Mapping[str, _Split], device: torch.device) -> _Test:
    """What the settings that were chosen give on the test split."""
    assert recipe.test is not None
    train, validation, test = (splits[name].labelled(device) for name in ("train", recipe.validation, recipe.test))
    names = splits["train"].images.class_names
    fitted = _probe(recipe).only(chosen.settings).fit(train.joined(validation) if recipe.refits else train, len(names))
    [(_, logits)] = fitted(test.features)
    metrics = classification_metrics(logits, test.labels, names, extra=(recipe.criterion,))
    return _Test(splits[recipe.test], metrics, image_scores(logits, test.labels))


def _probe(recipe: ProbeRecipe) -> Probe:
    return create_probe(
        recipe.method,
        ks=recipe.ks,
        temperatures=recipe.temperatures,
        strengths=recipe.strengths,
        rates=recipe.rates,
    )


def _decision(
    recipe: ProbeRecipe, candidates: Sequence[Candidate], chosen: Candidate, test: _Test | None
) -> dict[str, Any]:
    """What was chosen and why, and what came of it."""
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
    }


def _write(recipe: ProbeRecipe, folder: ResultFolder, results: Mapping[str, Any], test: _Test | None) -> None:
    with folder.write() as temporary:
        tables = {}
        if test is not None:
            split, probabilities = test.split, "confidence" in TOLD[recipe.method]
            write_tables(temporary, test.metrics, test.scores, split.outputs, split.images, probabilities=probabilities)
            tables = table_digests(temporary)
        (temporary / RECIPE).write_text(dump(recipe), encoding="utf-8")
        write_json(temporary / RESULTS, sealed({**results, "tables": tables}))


def _table(recipe: ProbeRecipe, results: Mapping[str, Any]) -> list[str]:
    """The candidates, the best marked, and the test metrics."""
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
    return lines
