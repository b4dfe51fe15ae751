"""What an evaluation of a classifier writes to its folder and the console: tables, a picture, lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difformer.analysis.metrics import ClassificationMetrics, ImageScores
from difformer.data import ImageDataset
from difformer.report.confusion import draw_confusion
from difformer.tables import write_table
from difformer.tasks.task import Outputs

TABLES = ("per_class.csv", "confusion.csv", "confusion.png", "predictions.csv")


def readable(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the console from what `ClassificationMetrics.to_dict` gives; missing metrics are left out."""
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
        folder: for the files.
        metrics, scores: of the outputs.
        outputs: labels and ids of the images that were classified.
        images: gives their names.
        probabilities: whether the scores' confidences are probabilities.

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
    names = images.names_by_id
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
