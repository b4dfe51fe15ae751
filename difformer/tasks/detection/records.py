"""What is found in an image and what is kept of it: at its own size, beside its objects, and measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from difformer._optional import require
from difformer.analysis import DetectionMetrics, coco_annotations, coco_results, coco_truth, detection_metrics
from difformer.data import Boxes, Origin
from difformer.heads.detection import Detections, paste_masks

# Of `merit`, pictures and per_image.csv: detections that are less certain are not looked at, and boxes that overlap
# less are not the same object.
CERTAIN = 0.5
OVERLAP = 0.5
# The numbers of `ObjectMetrics` by what people call them; those of masks begin with mask_.
TITLES = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium",
    "ap_large": "AP large", "ar": "recall",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class DetectionScore:
    """What an evaluation keeps of an image, as COCO's files have it, with the image's number 0.

    Attributes:
        size: (H, W) of the image.
        found: detections, the most certain first, from `coco_results`.
        objects: what is to be found, from `coco_annotations`.
        masks: whether both have masks.
    """

    size: tuple[int, int]
    found: tuple[Mapping[str, Any], ...]
    objects: tuple[Mapping[str, Any], ...]
    masks: bool


@dataclass(frozen=True, eq=False)
class Outcome:
    """Which of an image's detections are right, and which of its objects are found.

    Attributes:
        right: (n,) bool, by detection.
        counted: (n,) bool, false for those that are too uncertain, or lie in a crowd.
        found: (m,) bool, by object.
        missed: (m,) bool; crowds are neither found nor missed.
    """

    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    found: NDArray[np.bool_]
    missed: NDArray[np.bool_]

    @property
    def f1(self) -> float:
        """Twice the right ones over all detections and objects; 1 where there is neither."""
        right, all_ = int(self.right.sum()), int(self.counted.sum() + self.found.sum() + self.missed.sum())
        return 2 * right / all_ if all_ else 1.0


@dataclass(frozen=True, eq=False)
class ObjectMetrics:
    """What is measured of a split.

    Attributes:
        boxes: by the overlap of boxes.
        masks: by that of masks; None where there are none.
        num_classes: K.
        extra: further metrics by name, where others were asked for.
    """

    boxes: DetectionMetrics
    masks: DetectionMetrics | None
    num_classes: int
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """N."""
        return self.boxes.num_images

    def value(self, name: str) -> float | None:
        """The number of a metric, such as `ap` or `mask_ap`; None where it has none here."""
        if name in self.extra:
            return self.extra[name]
        if not name.startswith("mask_"):
            return self.boxes.value(name)
        return None if self.masks is None else self.masks.value(name.removeprefix("mask_"))

    def summary(self) -> dict[str, float]:
        """The numbers that stand in the record of an epoch."""
        masks = {} if self.masks is None else self.masks.summary()
        return {**self.boxes.summary(), **{f"mask_{name}": value for name, value in masks.items()}, **self.extra}

    def to_dict(self, *, tables: bool = True) -> dict[str, Any]:
        """The same as JSON has it; the keys of the masks begin with `mask_`."""
        found = {"num_classes": self.num_classes, **self.boxes.to_dict(tables=tables)}
        masks = {} if self.masks is None else self.masks.to_dict(tables=tables)
        found |= {f"mask_{name}": value for name, value in masks.items() if name != "num_images"}
        return found | dict(self.extra)


def at_own_size(found: Detections, origin: Origin) -> Detections:
    """Detections of an input, in pixels of its image and cut at the image's edges; those in its padding are left out.

    A mask that was spread over a box that is cut is read anew over what is left of the box.
    """
    whole = origin.points(found.boxes.reshape(-1, 2)).reshape(-1, 4)
    boxes = origin.boxes(found.boxes)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    masks = None if found.masks is None else _recut(found.masks[kept], whole[kept], boxes[kept])
    return Detections(boxes[kept], found.scores[kept], found.labels[kept], masks)


def _recut(masks: Tensor, whole: Tensor, boxes: Tensor) -> Tensor:
    """Masks (n, h, w), spread over `whole`, read at the cells of `boxes` that lie in it."""
    changed = (whole != boxes).any(dim=1)
    if not changed.any():
        return masks
    axes = []
    for axis, cells in ((1, masks.shape[1]), (0, masks.shape[2])):
        (low, high), (first, last) = ((x[changed][:, axis], x[changed][:, axis + 2]) for x in (whole, boxes))
        middles = (torch.arange(cells, device=masks.device) + 0.5) / cells
        places = first[:, None] + (last - first)[:, None] * middles
        axes.append(2 * (places - low[:, None]) / (high - low)[:, None] - 1)
    y, x = axes
    n, h, w = masks[changed].shape
    grid = torch.stack([x[:, None].expand(n, h, w), y[:, :, None].expand(n, h, w)], dim=3)
    read = F.grid_sample(masks[changed][:, None].float(), grid, padding_mode="border", align_corners=False)
    masks = masks.clone()
    masks[changed] = read[:, 0].to(masks.dtype)
    return masks


def score_of(found: Detections, target: Boxes) -> DetectionScore:
    """What is kept of an image."""
    masks = pasted = None
    if found.masks is not None and target.masks is not None:
        masks, pasted = target.masks, paste_masks(found.masks, found.boxes, target.size)
    results = coco_results(0, found.boxes, found.labels, found.scores, masks=pasted)
    objects = coco_annotations(0, target.boxes, target.labels, crowd=target.crowd, areas=target.areas, masks=masks)
    return DetectionScore(target.size, tuple(results), tuple(objects), masks is not None)


def as_coco(
    scores: Sequence[DetectionScore], ids: Sequence[int], names: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and results of a split in COCO's form.

    Args:
        scores: of the images.
        ids: their numbers.
        names: of the classes.
    """
    sizes = {number: score.size for number, score in zip(ids, scores, strict=True)}
    numbered = list(zip(ids, scores, strict=True))
    objects = [{**one, "image_id": number} for number, score in numbered for one in score.objects]
    results = [{**one, "image_id": number} for number, score in numbered for one in score.found]
    return coco_truth(sizes, objects, names), results


def measured_of(scores: Iterable[DetectionScore], names: Sequence[str]) -> ObjectMetrics:
    """COCO's average precision of boxes, and of masks where all images have them.

    Raises:
        ValueError: there is no object in any image.
    """
    scores = list(scores)
    if not any(not one["iscrowd"] for score in scores for one in score.objects):
        raise ValueError(f"none of {len(scores)} images has an object that could be found, so that nothing is measured")
    truth, results = as_coco(scores, range(len(scores)), names)
    masks = detection_metrics(truth, results, overlap="segm") if all(score.masks for score in scores) else None
    return ObjectMetrics(detection_metrics(truth, results), masks, len(names))


def outcome_of(score: DetectionScore) -> Outcome:
    """Which boxes of an image are right: COCO's matching at an overlap of 0.5, of detections with a score of 0.5."""
    library = require("pycocotools.mask", "comparing boxes", install="pycocotools")
    crowd = np.array([one["iscrowd"] for one in score.objects], dtype=bool)
    right, counted = (np.zeros(len(score.found), dtype=bool) for _ in range(2))
    taken = np.zeros(len(score.objects), dtype=bool)
    wanted = [one["bbox"] for one in score.objects]
    for place, one in enumerate(score.found):
        if one["score"] < CERTAIN:
            continue
        same = np.array([other["category_id"] == one["category_id"] for other in score.objects], dtype=bool)
        overlaps = np.zeros(len(wanted))
        if wanted:
            overlaps = np.where(same, library.iou([one["bbox"]], wanted, crowd.astype(int).tolist())[0], 0)
        free = np.where(taken | crowd, 0, overlaps)
        right[place] = free.max(initial=0) >= OVERLAP
        if right[place]:
            taken[free.argmax()] = True
        counted[place] = right[place] or not (overlaps[crowd] >= OVERLAP).any()
    return Outcome(right, counted, taken, ~taken & ~crowd)
