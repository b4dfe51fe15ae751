"""What evaluations leave in their folder: tables, a picture, and numbers to read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.analysis.metrics import ClassificationMetrics, ImageScores
from difformer.data import ImageDataset
from difformer.engine.runtime.outputs import Outputs
from difformer.engine.runtime.result_folder import write_table
from difformer.files import read_json, sha256
from difformer.report.confusion import draw_confusion

TABLES = ("per_class.csv", "confusion.csv", "confusion.png", "predictions.csv")
_LONG = ("confusion", "per_class")


def scalars(metrics: ClassificationMetrics) -> dict[str, Any]:
    """Metrics as JSON has them, without what the tables hold."""
    return {name: value for name, value in metrics.to_dict().items() if name not in _LONG}


def readable(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the console from what `scalars` gives, without what is not there."""
    interval = metrics["top1_interval"]
    ends = f"{interval['low']:.1%} … {interval['high']:.1%} with {interval['level']:.0%} confidence"
    shown = {"top-1": "top1", "top-5": "top5", "mean per class": "mean_per_class", "macro F1": "macro_f1", "ECE": "ece"}
    lines = [f"{title:<15}{metrics[name]:6.1%}" for title, name in shown.items() if metrics.get(name) is not None]
    lines[0] += f"  {ends}"
    if metrics.get("nll") is not None:
        lines.append(f"{'cross-entropy':<15}{metrics['nll']:6.3f}")
    lines += [f"{name:<15}{value:6.4g}" for name, value in metrics.get("extra", {}).items()]
    if metrics["absent"]:
        lines.append(f"{'without images':<15}{len(metrics['absent'])} of {metrics['num_classes']} classes")
    return lines


def write_tables(
    folder: Path, metrics: ClassificationMetrics, scores: ImageScores, outputs: Outputs, images: ImageDataset,
    *, probabilities: bool = True,
) -> None:  # fmt: skip
    """Writes the files that `TABLES` names.

    Args:
        folder: where to.
        metrics, scores: of the outputs.
        outputs: labels and ids of the images that were classified.
        images: gives their names.
        probabilities: whether the scores' confidences are any.

    Raises:
        OSError: they cannot be written.
    """
    classes = [row.name for row in metrics.per_class]
    header = ["class", "images", "recall", "precision", "f1"]
    rows = [(row.name, row.count, row.recall, row.precision, row.f1) for row in metrics.per_class]
    write_table(folder / "per_class.csv", header, rows)
    counts = [[name, *row] for name, row in zip(classes, metrics.confusion.tolist(), strict=True)]
    write_table(folder / "confusion.csv", [r"true \ predicted", *classes], counts)
    draw_confusion(metrics.confusion, classes, folder / "confusion.png")
    names = dict(zip(images.ids.tolist(), images.names or (), strict=False))
    predictions = [
        (number, names.get(number), classes[label], classes[predicted], confidence if probabilities else None)
        for number, label, predicted, confidence in zip(
            outputs.ids.tolist(),
            outputs.labels.tolist(),
            scores.predicted.tolist(),
            scores.confidence.tolist(),
            strict=True,
        )
    ]
    write_table(folder / "predictions.csv", ["id", "name", "label", "predicted", "probability"], predictions)


def describe_split(
    split: str, images: ImageDataset, ids: NDArray[np.int64], skipped: tuple[int, ...]
) -> dict[str, Any]:
    """Which images were measured, as JSON has it.

    Args:
        split: its name.
        images: all of it.
        ids: of the images that were measured.
        skipped: ids of images that could not be read, as far as they are known.
    """
    left_out = {*skipped, *images.skipped.tolist(), *np.setdiff1d(images.ids, ids).tolist()}
    return {"split": split, "images": len(ids), "digest": images.digest, "skipped": sorted(left_out)}


def table_digests(folder: Path) -> dict[str, str]:
    """The digest of each table that is read back, for the file of numbers that lies beside them."""
    return {name: sha256(folder / name) for name in TABLES if name.endswith(".csv")}


def read_measurements(folder: Path, name: str, remedy: str) -> dict[str, Any]:
    """Reads the file of numbers of an evaluation, and makes sure of the tables beside it, where it says how they were.

    Args:
        folder: of the evaluation.
        name: of the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        OSError: a file is missing, or cannot be read.
        ValueError: one is damaged; the message names it.
    """
    report = read_json(folder / name, remedy)
    if not isinstance(report, dict):
        raise ValueError(f"{folder / name} is damaged: it holds no results; {remedy}")
    for table, digest in report.get("tables", {}).items():
        if sha256(folder / table) != digest:
            raise ValueError(f"{folder / table} is damaged: it is not what was written; {remedy}")
    return report
