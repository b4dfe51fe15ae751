"""What an evaluation of a segmentation writes to its folder and the console: tables, a picture, lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from difformer.analysis.segmentation import SegmentationMetrics, class_counts, mean_iou, pixel_accuracy
from difformer.data import ImageDataset
from difformer.report.bars import draw_bars
from difformer.report.confusion import draw_confusion
from difformer.report.page import Picture, Section, Table, percent
from difformer.tables import write_table
from difformer.tasks.dense import SCORES
from difformer.tasks.task import Outputs

_BARS = "per_class.png"
TABLES = ("per_class.csv", _BARS, "per_class.pdf", "confusion.csv", "confusion.png", "per_image.csv", SCORES)


def readable(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the console from what `SegmentationMetrics.to_dict` gives; missing metrics are left out."""
    shown = {
        "mean IoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy",
        "boundary F": "boundary_f",
    }  # fmt: skip
    lines = [f"{title:<15}{metrics[name]:6.1%}" for title, name in shown.items() if metrics.get(name) is not None]
    if metrics["absent"]:
        lines.append(
            f"{'left out':<15}{len(metrics['absent'])} of {metrics['num_classes']} classes, which no pixel has"
        )
    return lines


def write_tables(folder: Path, metrics: SegmentationMetrics, outputs: Outputs, images: ImageDataset) -> None:
    """Writes the files that `TABLES` names.

    Args:
        folder: for the files.
        metrics: of the outputs.
        outputs: the scores and ids of the images that were measured.
        images: gives their names.

    Raises:
        OSError: they cannot be written.
    """
    classes = [row.name for row in metrics.per_class]
    header = ["class", "pixels", "iou", "accuracy", "precision", "boundary_f"]
    rows = [(r.name, r.pixels, r.iou, r.accuracy, r.precision, r.boundary_f) for r in metrics.per_class]
    write_table(folder / "per_class.csv", header, rows)
    caption = f"n = {metrics.num_images:,} images; mean {100 * metrics.miou:.1f}."
    draw_bars({r.name: r.iou for r in metrics.per_class}, folder / _BARS, label="IoU", caption=caption)
    counts = [[name, *row] for name, row in zip(classes, metrics.confusion.tolist(), strict=True)]
    write_table(folder / "confusion.csv", [r"true \ predicted", *classes], counts)
    draw_confusion(metrics.confusion, classes, folder / "confusion.png")
    confusion = np.stack([score.confusion for score in outputs.values])
    names = images.names_by_id
    ids, own = outputs.ids.tolist(), class_counts(confusion)
    columns = (own[..., 1].sum(axis=1), mean_iou(own), pixel_accuracy(own))
    lines = zip(ids, map(names.get, ids), *(column.tolist() for column in columns), strict=True)
    write_table(folder / "per_image.csv", ["id", "name", "pixels", "miou", "pixel_accuracy"], lines)
    # What a comparison of two evaluations resamples.
    np.savez_compressed(folder / SCORES, ids=outputs.ids, counts=own)


def sections(metrics: SegmentationMetrics, folder: Path) -> list[Section]:
    """Sections of a page from what `write_tables` wrote."""
    header = ("Class", "IoU", "Accuracy", "Precision", "Boundary F", "Share of the pixels")
    total = max(1, sum(row.pixels for row in metrics.per_class))
    rows = [
        (row.name, *map(percent, (row.iou, row.accuracy, row.precision, row.boundary_f, row.pixels / total)))
        for row in metrics.per_class
    ]
    note = "In %. IoU: intersection over union; accuracy: share of the class's pixels that are found."
    return [
        Section("Classes", [Table(header, rows, note=note), Picture(folder / _BARS, "IoU of each class")]),
        Section("Confusions", [Picture(folder / "confusion.png", "Confusion matrix of the classes' pixels")]),
    ]
