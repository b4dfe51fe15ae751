"""Evaluation of a classifier on a split; the body of `difformer eval`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from difformer.backbones import FAMILIES
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import DiffusionClassifier, load_classifier, read_description
from difformer.classifier.files import stored_task
from difformer.classifier.hub import backbone_beside
from difformer.config.provenance import carried, without_places
from difformer.config.reading import read_yaml, value_at
from difformer.data import ImageDataset
from difformer.data.classes import check_same_classes
from difformer.data.dataset import READERS
from difformer.engine.config.build import build_backbone, build_dataset
from difformer.engine.config.evaluation import take_from_training
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.extraction.extract import open_or_extract
from difformer.engine.loop.trainer import Clock
from difformer.engine.runtime.locating import classifier_file, warn_of_unfinished
from difformer.engine.runtime.outputs import evaluate
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.result_folder import ResultFolder, describe_split, table_digests, write_json
from difformer.engine.runtime.run_folder import RunFolder, environment
from difformer.features import collate_features
from difformer.features.conditioning import warn_of_labels
from difformer.files import expand_user, sealed
from difformer.registry import Registry
from difformer.tasks import Outputs, Task
from difformer.tasks.dense import interval_of, read_scores
from difformer.tasks.registry import check_labels, is_dense
from difformer.tasks.task import Measured, task_metric
from difformer.verbs.eval.page import PAGE, PICTURES, write_evaluation_page
from difformer.verbs.eval.recipe import EvaluationRecipe

METRICS = "metrics.json"
# Only the user may set these: otherwise a folder could run its own code, or write anywhere.
_OF_THE_USER = ("trust", "metrics", "output")
_RESAMPLES = 1000


def evaluate_classifier(recipe: EvaluationRecipe, *, overwrite: bool = False) -> Measured:
    """Measures a classifier, each image of the split exactly once for any number of processes.

    Args:
        recipe: everything about the evaluation.
        overwrite: replace results that are there.

    Returns:
        What `metrics.json` and the tables hold, on every process.

    Raises:
        ValueError: the data does not fit the classifier, or a value in the recipe.
        OSError: something cannot be read or written.
        CheckpointError: the classifier is damaged, or was trained on another backbone.
        UntrustedError: its head or task, or the family of its backbone, is code of a package that is not trusted.
        ImageError: an image cannot be read, and the recipe does not skip such images.
    """
    if recipe.output is not None:
        output = expand_user(recipe.output)
    else:
        run = RunFolder(recipe.classifier)
        if not run.recipe.exists():
            raise ValueError("give --output, the folder for the results; only a run keeps them in its own folder")
        output = run.path / f"eval-{recipe.split}"
    # Before anything is fetched; the other files of results are known only once the task is.
    ResultFolder(output, ("*",)).check(overwrite=overwrite or not (output / METRICS).exists())
    file = classifier_file(recipe.classifier, download=recipe.backbone.download)
    warn_of_unfinished(recipe.classifier)
    description = read_description(file)
    names, task = tuple(description["class_names"]), stored_task(description, recipe.trust or ())
    for name in recipe.metrics:
        task_metric(task, name, "metrics")
    folder = ResultFolder(output, (METRICS, *task.tables, *((PAGE, PICTURES) if is_dense(task) else ())))
    folder.check(overwrite=overwrite)
    images = build_dataset(recipe.data, recipe.split, classes=names)
    check_labels(task, images)
    if is_dense(task) and recipe.features == "cached":
        raise ValueError(f"features: cached is not for {type(task).__name__}, whose maps are too large; use live")
    if task.stand_in() is None or is_dense(task):
        check_same_classes(task.output_names(images), names, "of the data set", "of the classifier")
    accelerator = create_accelerator(recipe.precision)
    backbone = build_backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    classifier = load_classifier(file, backbone=backbone, device=accelerator.device, trust=recipe.trust or ())
    if accelerator.is_main_process:
        warn_of_labels(classifier.conditioning.values)
    outputs, seconds = _classify(recipe, classifier, images, accelerator)
    measured = task.measure(outputs.values, outputs.labels, names, extra=recipe.metrics)
    if accelerator.is_main_process:
        report = _report(recipe, file, images, outputs, measured, seconds, accelerator)
        with folder.write() as temporary:
            task.write_tables(temporary, measured, outputs, images)
            if is_dense(task):
                interval = interval_of(task, [read_scores(temporary)], resamples=_RESAMPLES, seed=0)
                report["metrics"]["interval"] = None if interval is None else asdict(interval)
                report |= {"task": read_description(file)["task"], "outputs": list(names)}
                with accelerator.autocast():
                    write_evaluation_page(
                        temporary, classifier, task, images, outputs, measured, interval, recipe.split
                    )
            write_json(temporary / METRICS, sealed(report | {"tables": table_digests(temporary)}))
        print("\n".join(_lines(report, folder, task)), flush=True)
    return measured


def classifier_values(source: str, *, download: bool = False, trust: str | Iterable[str] = ()) -> dict[str, Any]:
    """The values of an `EvaluationRecipe` that follow from the first argument of `difformer eval`.

    Args:
        source: folder of a run, whose recipe is taken; or a classifier file or hf://owner/name, which name the backbone
            and say how images are read.
        download: whether it may be fetched when it is not on this machine.
        trust: a package, or several, whose code may run, for a run on a data set or a family of backbones of theirs.

    Raises:
        FileNotFoundError: there is no such classifier, or the folder is no run.
        UntrustedError: the run's recipe names a data set or a family of backbones of a package that is not trusted.
        CheckpointError: the file is damaged or no classifier.
        ValueError: the recipe of the run is damaged.
    """
    recipe = RunFolder(source).recipe
    if recipe.exists():
        found = read_yaml(recipe)
        for name in ("data", "backbone"):
            if not isinstance(found.get(name, {}), Mapping):
                raise ValueError(f"{recipe}: {name} must hold keys and values, got {found[name]!r}")
        values = take_from_training(found, EvaluationRecipe)
        # The folder may be somebody else's.
        _check_trusted(READERS, value_at(values, "data.name"), trust)
        _check_trusted(FAMILIES, value_at(values, "backbone.family"), trust)
        return {name: value for name, value in values.items() if name not in _OF_THE_USER} | {"classifier": source}
    file = classifier_file(source, download=download)
    description = read_description(file)
    backbone = {name: description["backbone"][name] for name in ("name", "family") if name in description["backbone"]}
    if beside := backbone_beside(file, description["backbone"]):
        backbone["name"] = str(beside)
    _check_trusted(FAMILIES, backbone.get("family"), trust)
    values = {"classifier": source, "backbone": backbone}
    preprocessing: Mapping[str, Any] | None = description["preprocessing"]
    # Evaluation mirrors nothing.
    read = {name: value for name, value in (preprocessing or {}).items() if name != "flip"}
    return values | ({"data": read} if read else {})


def _check_trusted(registry: Registry[Any], name: Any, trust: str | Iterable[str]) -> None:
    """Raises UntrustedError where a name that a folder or a file brought is code that was not allowed."""
    if isinstance(name, str) and ":" in name:
        registry.find_trusted(name, trust)


def _classify(
    recipe: EvaluationRecipe, classifier: DiffusionClassifier, images: ImageDataset, accelerator: Any
) -> tuple[Outputs, float]:
    """The outputs for all images, and the seconds they took; extracting features for the cache does not count."""
    inputs: Any = images
    collate: Any = collate_readable
    if recipe.features == "cached":
        inputs = open_or_extract(
            classifier,
            images,
            recipe.split,
            data=recipe.data,
            cache=recipe.cache,
            seed=classifier.extractor.seed,
            augment=False,
            processes=accelerator,
            workers=recipe.workers,
        )
        collate = collate_features
    clock = Clock()
    outputs = evaluate(
        classifier,
        inputs,
        collate,
        accelerator,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        progress=True,
        task=classifier.task,
        names=classifier.class_names,
    )
    return outputs, clock.seconds


def _report(
    recipe: EvaluationRecipe,
    file: Path,
    images: ImageDataset,
    outputs: Outputs,
    measured: Measured,
    seconds: float,
    accelerator: Any,
) -> dict[str, Any]:
    """What `metrics.json` holds, except the digests of the tables."""
    backbone = read_description(file)["backbone"]
    return {
        "classifier": {
            "source": without_places(recipe.classifier),
            "weights_sha256": read_metadata(file)["weights_sha256"],
            "backbone": backbone["name"],
            "backbone_sha256": backbone["digest"],
        },
        "data": describe_split(recipe.split, images, outputs.ids, outputs.skipped),
        "metrics": measured.to_dict(tables=False),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(outputs.ids) / max(seconds, 1e-9), 2),
        "recipe": carried(recipe),
        "environment": environment(accelerator.num_processes, accelerator.device),
    }


def _lines(report: Mapping[str, Any], folder: ResultFolder, task: Task) -> list[str]:
    """What the console shows."""
    data, classes, interval = report["data"], *(report["metrics"].get(key) for key in ("num_classes", "interval"))
    skipped = f", {len(data['skipped'])} skipped" if data["skipped"] else ""
    return [
        f"{data['split']:<15}{data['images']:,} images{skipped}{'' if classes is None else f', {classes} classes'}",
        *task.lines(report["metrics"]),
        *([] if interval is None else [_certainty(task, interval)]),
        f"{'throughput':<15}{report['images_per_second']:,.1f} images/s",
        f"results in {folder.path}",
    ]


def _certainty(task: Task, interval: Mapping[str, Any]) -> str:
    """The line of the first metric's interval."""
    name, metric = next(iter(task.metrics.items()))
    ends = f"{metric.text(interval['low'])} … {metric.text(interval['high'])}"
    return f"{'interval':<15}{ends} of the {metric.title or name} with {interval['level']:.0%} confidence, over images"
