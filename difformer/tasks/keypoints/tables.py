"""What an evaluation of landmarks writes to its folder and the console: tables, a picture, lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from difformer.analysis.keypoints import KeypointMetrics
from difformer.data import ImageDataset
from difformer.report.page import Picture, Section, Table, percent
from difformer.tables import write_table
from difformer.tasks.dense import SCORES
from difformer.tasks.keypoints.pictures import draw_error_curve
from difformer.tasks.task import Outputs

_CURVE = "error_curve.png"
TABLES = ("per_point.csv", "per_image.csv", "points.csv", _CURVE, "error_curve.pdf", SCORES)


def readable(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the console from what `KeypointMetrics.to_dict` gives."""
    shares = [name for name in metrics if name.startswith("pck@")]
    titles = {"nme": "NME", **{name: name.upper() for name in shares}, "failure_rate": "failures", "auc": "AUC"}
    lines = [f"{title:<15}{metrics[name]:6.1%}" for name, title in titles.items()]
    lines.insert(1, f"{'error':<15}{metrics['error']:6.2f} pixels")
    if left_out := metrics["num_images"] - metrics["num_measured"]:
        lines.append(
            f"{'left out':<15}{left_out} of {metrics['num_images']} images, without a visible point or a length"
        )
    return lines


def write_tables(
    folder: Path, metrics: KeypointMetrics, outputs: Outputs, images: ImageDataset, threshold: float
) -> None:
    """Writes the files that `TABLES` names. Places are in pixels, and 0.5 is the centre of the first one.

    Args:
        folder: for the files.
        metrics: of the outputs.
        outputs: the scores and ids of the images that were measured.
        images: gives their names.
        threshold: of failures, where the curve ends.

    Raises:
        OSError: they cannot be written.
    """
    header = ["point", "images", "error", "nme", *(f"pck@{alpha:g}" for alpha in metrics.pck)]
    rows = [(row.name, row.images, row.error, row.nme, *row.pck.values()) for row in metrics.per_point]
    write_table(folder / "per_point.csv", header, rows)
    names = images.names_by_id
    points = [row.name for row in metrics.per_point]
    of_images, of_points = [], []
    for number, score in zip(outputs.ids.tolist(), outputs.values, strict=True):
        who = (number, names.get(number))
        seen, errors = score.visible.tolist(), score.errors
        error = float(errors[score.visible].mean()) if score.visible.any() else None
        of_images.append((*who, sum(seen), _or_none(score.length), error, _or_none(score.nme)))
        places = zip(points, score.predicted.tolist(), score.confidence.tolist(), seen, strict=True)
        of_points += [
            (*who, name, x, y, confidence, *(score.true[i].tolist() if there else (None, None)), _or_none(errors[i]))
            for i, (name, (x, y), confidence, there) in enumerate(places)
        ]
    write_table(folder / "per_image.csv", ["id", "name", "visible", "length", "error", "nme"], of_images)
    header = ["id", "name", "point", "x", "y", "confidence", "true_x", "true_y", "error"]
    write_table(folder / "points.csv", header, of_points)
    draw_error_curve(metrics.image_nme, threshold, folder / _CURVE)
    # What a comparison of two evaluations resamples.
    np.savez_compressed(folder / SCORES, ids=outputs.ids, nme=metrics.image_nme)


def sections(metrics: KeypointMetrics, folder: Path) -> list[Section]:
    """Sections of a page from what `write_tables` wrote."""
    header = ("Point", "Images", "Error", "NME", *(f"PCK@{alpha:g}" for alpha in metrics.pck))
    rows = [
        (row.name, f"{row.images:,}", "-" if row.error is None else f"{row.error:.2f}",
         *map(percent, (row.nme, *row.pck.values())))
        for row in metrics.per_point
    ]  # fmt: skip
    note = (
        "Images: those that show the point. Error: mean in pixels. NME: mean error relative to the length that the "
        "task divides by, in %. PCK: share of the images where it is within that share of the length, in %."
    )
    return [
        Section("Points", [Table(header, rows, note=note)]),
        Section("Errors", [Picture(folder / _CURVE, "Share of the images below each error")]),
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
