"""Which detections are right, and average precision from that alone: fast enough for thousands of resamples."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.analysis.detection import IOU_THRESHOLDS, RECALLS, Overlap, compare_objects


@dataclass(frozen=True, eq=False)
class DetectionMatches:
    """The detections of a split beside its objects, by COCO's rules, with at most 100 detections an image and class.

    Attributes:
        objects: (N, K) int64, how many of each class are to be found in each image, without crowds.
        image: (n,) int64 place of the detection's image, in the order of their ids.
        label: (n,) int64 place of its class, in the order of their ids.
        score: (n,) float64.
        right: (n, 10) bool, whether it is an object that is found, at each of `IOU_THRESHOLDS`.
        counted: (n, 10) bool, false where it is neither right nor wrong, since it lies in a crowd.
    """

    objects: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]


def detection_matches(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, overlap: Overlap = "bbox"
) -> DetectionMatches:
    """Matches detections with objects, by pycocotools.

    Args:
        truth, results, overlap: as for `detection_metrics`.

    Raises:
        ValueError, ImportError: as `detection_metrics`.
    """
    evaluation = compare_objects(truth, results, overlap)
    parameters = evaluation.params
    # Of all sizes.
    parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    images, levels = len(parameters.imgIds), len(IOU_THRESHOLDS)
    objects = np.zeros((images, len(parameters.catIds)), dtype=np.int64)
    nothing = np.zeros((0, levels), dtype=bool)
    parts: list[tuple[NDArray[Any], ...]] = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0), nothing, nothing)]
    # By class, then by image.
    for place, found in enumerate(evaluation.evalImgs):
        if found is None:
            continue
        label, image = divmod(place, images)
        objects[image, label] = len(found["gtIgnore"]) - np.count_nonzero(found["gtIgnore"])
        count, ignored = len(found["dtScores"]), np.asarray(found["dtIgnore"], dtype=bool)
        right = (np.asarray(found["dtMatches"]) > 0) & ~ignored
        scores = np.asarray(found["dtScores"], dtype=np.float64)
        parts.append((np.full(count, image), np.full(count, label), scores, right.T, ~ignored.T))
    return DetectionMatches(objects, *(np.concatenate(part) for part in zip(*parts, strict=True)))


def average_precision(matches: DetectionMatches, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """COCO's average precision, mean over overlaps and classes.

    Precision is looked at where an object is found: there alone it rises.

    Args:
        matches: of a split.
        weights: (R, N) whole numbers, how often each image is in each of R sets; every image once when left out.

    Returns:
        (R,) the mean over the classes with objects in that set; not a number where there are none.
    """
    weights = np.ones((1, len(matches.objects))) if weights is None else weights
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for label in range(matches.objects.shape[1]):
        objects = weights @ matches.objects[:, label]
        own = np.flatnonzero(matches.label == label)
        own = own[np.argsort(-matches.score[own], kind="stable")]
        found = _of_class(weights[:, matches.image[own]], matches.right[own], matches.counted[own], objects)
        total += np.where(objects > 0, found, 0)
        classes += objects > 0
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = total / classes
    return mean


def _of_class(
    weights: NDArray[np.float64], right: NDArray[np.bool_], counted: NDArray[np.bool_], objects: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,) average precision of a class.

    Args:
        weights: (R, n) of its detections, the most certain first.
        right, counted: (n, 10) as in `DetectionMatches`.
        objects: (R,) that are to be found.
    """
    total, levels = np.zeros(len(weights)), right.shape[1]
    for level in range(levels):
        if level == 0 or (counted[:, level] != counted[:, level - 1]).any():
            seen = np.cumsum(weights * counted[:, level], axis=1)
        hits = np.flatnonzero(right[:, level])
        if not len(hits):
            continue
        found = np.cumsum(weights[:, hits], axis=1)
        precision = found / np.maximum(seen[:, hits], 1)
        # No precision is smaller than a later one; beyond the last recall it is 0.
        envelope = np.zeros((len(weights), len(hits) + 1))
        envelope[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = found / np.maximum(objects, 1)[:, None]
        places = np.stack([np.searchsorted(row, RECALLS) for row in recall])
        total += np.take_along_axis(envelope, places, axis=1).mean(axis=1)
    return total / levels
