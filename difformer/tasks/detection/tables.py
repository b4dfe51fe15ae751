"""What an evaluation of a detection writes to its folder, the console and its page: tables, curves, lines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.analysis import ClassDetection, DetectionMatches, detection_matches
from difformer.data import ImageDataset
from difformer.report.page import Picture, Section, Table, percent
from difformer.tables import write_table
from difformer.tasks.dense import SCORES
from difformer.tasks.detection.pictures import draw_precision_recall
from difformer.tasks.detection.records import TITLES, ObjectMetrics, as_coco, outcome_of
from difformer.tasks.task import Outputs

RESULTS, TRUTH = "detections.json", "truth.json"
_CURVES = "precision_recall.png"
TABLES = ("per_class.csv", _CURVES, "precision_recall.pdf", "per_image.csv", RESULTS, TRUTH, SCORES)

_MATCHES = ("objects", "image", "label", "score", "right", "counted")


def readable(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the console from what `ObjectMetrics.to_dict` gives; missing metrics are left out."""
    found = {title: metrics.get(name) for name, title in TITLES.items()}
    found |= {f"mask {title}": metrics.get(f"mask_{name}") for name, title in TITLES.items()}
    return [f"{title:<15}{value:6.1%}" for title, value in found.items() if value is not None]


def write_tables(folder: Path, metrics: ObjectMetrics, outputs: Outputs, images: ImageDataset) -> None:
    """Writes the files that `TABLES` names.

    Args:
        folder: for the files.
        metrics: of the outputs.
        outputs: the scores and ids of the images that were measured.
        images: gives their names.

    Raises:
        OSError: they cannot be written.
    """
    classes = [row.name for row in metrics.boxes.per_class]
    header, rows = _per_class(metrics)
    write_table(folder / "per_class.csv", header, rows)
    draw_precision_recall(folder / _CURVES, metrics.boxes, metrics.masks)
    ids, names = outputs.ids.tolist(), images.names_by_id
    lines = []
    for number, score in zip(ids, outputs.values, strict=True):
        found = outcome_of(score)
        counts = (found.found.sum() + found.missed.sum(), found.counted.sum(), found.right.sum(), found.missed.sum())
        lines.append([number, names.get(number), *map(int, counts), found.f1])
    write_table(folder / "per_image.csv", ["id", "name", "objects", "detections", "right", "missed", "f1"], lines)
    truth, results = as_coco(list(outputs.values), ids, classes)
    for image in truth["images"]:
        image["file_name"] = names.get(image["id"], str(image["id"]))
    for name, content in ((TRUTH, truth), (RESULTS, results)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    # Numbered by place, so that the order of the images is that of their ids here.
    matches = detection_matches(*as_coco(list(outputs.values), range(len(ids)), classes))
    # What a comparison of two evaluations resamples.
    np.savez_compressed(folder / SCORES, ids=outputs.ids, **{name: getattr(matches, name) for name in _MATCHES})


def kept_matches(kept: Mapping[str, NDArray[Any]]) -> DetectionMatches:
    """What `write_tables` put into the file `SCORES`."""
    return DetectionMatches(**{name: kept[name] for name in _MATCHES})


def sections(metrics: ObjectMetrics, folder: Path) -> list[Section]:
    """Sections of a page from what `write_tables` wrote."""
    titles = {"class": "Class", "objects": "Objects", "ap": "AP", "ap50": "AP50", "mask_ap": "Mask AP",
              "mask_ap50": "Mask AP50"}  # fmt: skip
    header, rows = _per_class(metrics)
    cells = [(name, f"{objects:,}", *map(percent, numbers)) for name, objects, *numbers in rows]
    note = "AP in %: COCO's, the mean over overlaps (IoU) of 0.5, 0.55 … 0.95; AP50 at 0.5. -: no objects."
    curves = Picture(folder / _CURVES, "Precision over recall of each class and their mean, at an overlap of 0.5")
    return [
        Section("Sizes", [_by_size(metrics)]),
        Section("Classes", [Table([titles[name] for name in header], cells, note=note), curves]),
    ]


def _by_size(metrics: ObjectMetrics) -> Table:
    header = ("", "AP", "AP50", "AP75", "Small", "Medium", "Large", "Recall")
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
    kinds = {"Boxes": ""} | ({"Masks": "mask_"} if metrics.masks is not None else {})
    rows = [(kind, *(percent(metrics.value(start + key)) for key in keys)) for kind, start in kinds.items()]
    note = (
        "In %. Small objects have less than 32² pixels, large ones more than 96². Recall: the mean over the overlaps, "
        "with at most 100 detections an image."
    )
    return Table(header, rows, note=note)


def _per_class(metrics: ObjectMetrics) -> tuple[list[str], list[list[Any]]]:
    """Header and rows: numbers of the boxes, then of the masks where there are any."""
    header = ["class", "objects", "ap", "ap50"]
    rows: list[list[Any]] = [[row.name, row.objects, row.ap, row.ap50] for row in metrics.boxes.per_class]
    masks: Sequence[ClassDetection] = () if metrics.masks is None else metrics.masks.per_class
    if masks:
        header += ["mask_ap", "mask_ap50"]
        rows = [[*row, one.ap, one.ap50] for row, one in zip(rows, masks, strict=True)]
    return header, rows
