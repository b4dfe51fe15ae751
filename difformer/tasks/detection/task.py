"""Detection: boxes of objects, and their masks, by a head with losses of its own."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer._optional import require
from difformer.analysis import (
    Interval,
    Metric,
    PairedDifference,
    average_precision,
    bootstrap_weights,
    coco_results,
    paired_bootstrap_weights,
)
from difformer.data import Boxes, ImageDataset, Origin, Target
from difformer.files import read_json
from difformer.heads.detection import Detections, paste_masks
from difformer.report.page import Section
from difformer.tasks.dense import Kept
from difformer.tasks.detection.pictures import draw_detection, overlaid
from difformer.tasks.detection.records import (
    TITLES,
    DetectionScore,
    ObjectMetrics,
    at_own_size,
    measured_of,
    outcome_of,
    score_of,
)
from difformer.tasks.detection.tables import RESULTS, TABLES, kept_matches, readable, sections, write_tables
from difformer.tasks.registry import TASKS
from difformer.tasks.task import Outputs, own_metrics


def _metric(name: str, title: str) -> Metric:
    def compute(scores: NDArray[Any], labels: NDArray[Any]) -> float:
        objects = [one["category_id"] for score in scores for one in (*score.objects, *score.found)]
        number = measured_of(scores, [str(i) for i in range(max(objects, default=0))]).value(name)
        return float("nan") if number is None else number

    return Metric(compute, share=True, title=title)


METRICS = {name: _metric(name, title) for name, title in TITLES.items()}
METRICS |= {f"mask_{name}": _metric(f"mask_{name}", f"mask {title}") for name, title in TITLES.items()}


# Made here, since it may be asked for where tensors have no data.
_STAND_IN = Boxes(
    torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
    torch.tensor([0]),
    torch.tensor([False]),
    (1, 1),
    masks=torch.ones(1, 1, 1, dtype=torch.bool),
)


@TASKS.register("detection")
class Detection:
    """Outputs are boxes of objects, or these and masks, and labels are boxes.

    The loss is the sum of the head's own. Detections are measured by COCO's average precision, with at most 100 an
    image and class; masks where both the head and the data set have them.

    Raises:
        ImportError: pycocotools is missing.
    """

    reads = "boxes"
    counted: tuple[str, ...] = ()
    tables = TABLES
    metrics = METRICS

    def __init__(self) -> None:
        # Before the first step, after which it is needed.
        require("pycocotools.mask", "detection", install="pycocotools")

    @property
    def arguments(self) -> dict[str, Any]:
        """None."""
        return {}

    def output_names(self, images: ImageDataset) -> tuple[str, ...]:
        """The names of the classes."""
        return images.class_names

    def stand_in(self) -> Boxes:
        """One object, with a mask, that fills an image of one pixel."""
        return _STAND_IN

    def losses(self, outputs: Mapping[str, Tensor], labels: Any) -> Tensor:
        """(B,) sums of the head's losses.

        Args:
            outputs: the head's losses, (B,) by name.
            labels: B `Boxes`, which the head has seen.
        """
        return torch.stack(list(outputs.values())).sum(dim=0)

    def counts(self, outputs: Any, labels: Any) -> Sequence[Tensor]:
        """Nothing is counted in training."""
        return []

    def rates(self, counts: Mapping[str, float], images: int) -> dict[str, float]:
        """None."""
        return {}

    def infer(self, classifier: Any, images: Tensor, ids: Tensor, origins: Sequence[Origin]) -> list[Detections]:
        """The objects of the images, in pixels of each; masks stay spread over their boxes, see `paste_masks`.

        Args:
            classifier: in evaluation mode, with a head that gives boxes.
            images: (B, 3, h, w) in [-1, 1].
            ids: (B,) int64.
            origins: B.

        Raises:
            ValueError: features that are not finite.
        """
        return [at_own_size(found, origin) for found, origin in zip(classifier(images, ids), origins, strict=True)]

    def score(self, prediction: Detections, target: Target, names: Sequence[str]) -> DetectionScore:
        """Detections and objects, masks as run-length codes."""
        assert isinstance(target, Boxes)
        return score_of(prediction, target)

    def measure(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str], *, extra: Iterable[str] = ()
    ) -> ObjectMetrics:
        """COCO's numbers.

        Raises:
            ValueError: there is no object in any image, or `extra` names a metric that has no number here.
        """
        asked = list(extra)
        found = replace(measured_of(outputs, names), extra=own_metrics(self, asked, outputs, labels))
        for name in asked:
            if found.value(name) is None:
                without_masks = found.masks is None and name.startswith("mask_")
                why = "the head or the data set has no masks" if without_masks else "there are no such objects"
                raise ValueError(f"{name} is not measured here, since {why}")
        return found

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Average precision, by overlap and size, and recall."""
        return readable(record)

    def write_tables(self, folder: Path, measured: ObjectMetrics, outputs: Outputs, images: ImageDataset) -> None:
        """Classes and images as tables, curves, objects and detections in COCO's form, and what is resampled."""
        write_tables(folder, measured, outputs, images)

    def columns(self, names: Sequence[str]) -> list[str]:
        """Class, score, and the corners of the box in pixels of the image."""
        return ["label", "score", "x1", "y1", "x2", "y2"]

    def rows(self, prediction: Detections, names: Sequence[str]) -> list[list[Any]]:
        """One row an object, as `columns` says, the most certain first."""
        each = zip(prediction.labels.tolist(), prediction.scores.tolist(), prediction.boxes.tolist(), strict=True)
        return [[names[label], score, *box] for label, score, box in each]

    def merit(self, score: DetectionScore) -> float:
        """F1 of the detections with a score of at least 0.5, right at an overlap of 0.5; 1 where there is nothing to be
        found and nothing is."""
        return outcome_of(score).f1

    def interval(self, kept: Sequence[Kept], *, resamples: int, seed: int) -> Interval:
        """Of the average precision of boxes, in each resample over the classes that have objects there."""
        size, width = _extent(kept)
        found = bootstrap_weights(size, _mean_precision(kept), width=width, shifts=True, resamples=resamples, seed=seed)
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))

    def difference(
        self, kept: Sequence[Kept], others: Sequence[Kept], *, resamples: int, seed: int
    ) -> PairedDifference:
        """Of the average precision of boxes."""
        size, width = _extent([*kept, *others])
        sides = _mean_precision(kept), _mean_precision(others)
        how: dict[str, Any] = {"width": width, "shifts": True, "resamples": resamples, "seed": seed}
        return paired_bootstrap_weights(size, *sides, **how)

    def write(self, folder: Path, stem: str, picture: Any, prediction: Detections, names: Sequence[str]) -> None:
        """Writes `objects/STEM.json` with the objects as COCO's result files have them, and `overlays/STEM.jpg` with
        those of a score of at least 0.5."""
        drawn, listed = folder / f"overlays/{stem}.jpg", folder / f"objects/{stem}.json"
        for path in (drawn, listed):
            path.parent.mkdir(parents=True, exist_ok=True)
        overlaid(picture, prediction, names).save(drawn)
        size = picture.height, picture.width
        masks = None if prediction.masks is None else paste_masks(prediction.masks, prediction.boxes, size)
        found = coco_results(0, prediction.boxes, prediction.labels, prediction.scores, masks=masks)
        for one in found:
            del one["image_id"]
            one |= {"category": names[one["category_id"] - 1]}
        listed.write_text(json.dumps({"height": size[0], "width": size[1], "objects": found}), encoding="utf-8")

    def finish(self, folder: Path, stems: Sequence[str], names: Sequence[str]) -> None:
        """Writes `detections.json`: the objects of all images as one list, as COCO's result files are. `image` is the
        name of an image's file without suffix; `image_id` numbers the images in their order, from 1."""
        together: list[dict[str, Any]] = []
        for number, stem in enumerate(stems, 1):
            content = read_json(folder / "objects" / f"{stem}.json", "predict again with --overwrite")
            together += [{"image_id": number, "image": stem, **one} for one in content["objects"]]
        (folder / RESULTS).write_text(json.dumps(together), encoding="utf-8")

    def sections(self, measured: ObjectMetrics, folder: Path) -> list[Section]:
        """Numbers by size and class, and curves."""
        return sections(measured, folder)

    def draw(self, path: Path, picture: Any, target: Target, prediction: Detections, names: Sequence[str]) -> None:
        """Image, objects and detections."""
        assert isinstance(target, Boxes)
        draw_detection(path, picture, score_of(prediction, target), names)


def _extent(kept: Sequence[Kept]) -> tuple[int, int]:
    """The number of images, and the most detections of a model."""
    return len(kept[0]["objects"]), max(len(one["image"]) for one in kept)


def _mean_precision(kept: Sequence[Kept]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """From weights of the images to the models' mean average precision."""
    models = [kept_matches(one) for one in kept]

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.mean([average_precision(one, weights) for one in models], axis=0)
        return found

    return mean
