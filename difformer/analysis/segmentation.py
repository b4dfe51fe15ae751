"""How well maps of classes agree with labels: counts of pixels, and what is computed from them.

Counts may be added, over parts of an image, over images and over processes, and the sum is what one pass over all of
them gives. So a split of any size is measured in the memory of one batch, and kept image by image, `class_counts` are
what `paired_bootstrap_counts` resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis._inputs import Array, as_class_maps, as_tensor
from difformer.analysis._means import known_mean, or_none, ratio
from difformer.analysis.boundary import boundary_f
from difformer.config import as_positive_integer
from difformer.maps import as_ignore_index

# Pixels that are counted together: 64 MB in int64.
_CHUNK_ELEMENTS = 1 << 22


def pixel_confusion(predicted: Array, labels: Array, num_classes: int, *, ignore_index: int = 255) -> Tensor:
    """Counts of each image's pixels by true and predicted class.

    Args:
        predicted: (B, H, W) integers in [0, num_classes), such as the argmax of logits.
        labels: (B, H, W) integers in [0, num_classes), or `ignore_index` where the class is not known; what is
            predicted there is not counted.
        num_classes: K.
        ignore_index: outside [0, num_classes).

    Returns:
        (B, K, K) int64 on the labels' device; a row is a true class, a column a predicted one.

    Raises:
        ValueError: wrong shapes, types or values; the message names image and pixel.
    """
    classes = as_positive_integer("num_classes", num_classes)
    ignored = as_ignore_index(ignore_index, classes)
    found, truth = as_class_maps(predicted, labels)
    counts = torch.zeros(len(truth), classes**2, dtype=torch.int64, device=truth.device)
    for image in range(len(truth)):
        rows = max(1, _CHUNK_ELEMENTS // truth.shape[2])
        for top, (own, other) in enumerate(zip(truth[image].split(rows), found[image].split(rows), strict=True)):
            own, other = own.long(), other.to(own.device).long()
            known = own != ignored
            _check_classes("labels", own, ~known | _within(own, classes), (image, top * rows), classes)
            _check_classes("predicted", other, _within(other, classes), (image, top * rows), classes)
            counts[image] += torch.bincount(own[known] * classes + other[known], minlength=classes**2)
    return counts.unflatten(1, (classes, classes))


def class_counts(confusion: Array) -> NDArray[np.int64]:
    """What of each class is right, labelled and predicted, which is all that the measures below need.

    Args:
        confusion: (…, K, K) counts, as `pixel_confusion` gives them, or sums of these.

    Returns:
        (…, K, 3): pixels that are of the class and taken for it, that are of it, and that are taken for it.

    Raises:
        ValueError: another type or shape.
    """
    table = _as_confusion(confusion)
    counts = [np.diagonal(table, axis1=-2, axis2=-1), table.sum(axis=-1), table.sum(axis=-2)]
    return np.stack(counts, axis=-1)


def class_iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each class (Long et al. 2015, section 5).

    Args:
        counts: (…, K, 3) of `class_counts`.

    Returns:
        (…, K) in [0, 1]; not a number for a class that is neither labelled nor predicted.

    Raises:
        ValueError: another shape.
    """
    right, labelled, predicted = _columns(counts)
    return ratio(right, labelled + predicted - right)


def mean_iou(counts: NDArray[Any], *, whole: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Mean of `class_iou` over the classes that are labelled or predicted.

    A class that is predicted and not labelled counts as 0, as in mmsegmentation and torchmetrics'
    `MulticlassJaccardIndex`; one that is neither is left out.

    Args:
        counts: as for `class_iou`.
        whole: (K, 3) counts of a set, of which `counts` are resamples, as the bootstrap functions give it. Then all are
            means over the classes of the set: one that is never labelled there, and predicted, counts as 0 everywhere.

    Returns:
        (…), not a number where no class is labelled or predicted; or one that the set labels is not labelled.

    Raises:
        ValueError: another shape.
    """
    values = class_iou(counts)
    if whole is not None:
        _, labelled, predicted = _columns(whole)
        values = np.where((labelled == 0) & (predicted > 0), 0, values)
    return _where_complete(known_mean(values), counts, whole)


def class_accuracy(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Share of each class's pixels that are taken for it.

    Args and raises: as `class_iou`.

    Returns:
        (…, K) in [0, 1]; not a number for a class that is not labelled.
    """
    right, labelled, _ = _columns(counts)
    return ratio(right, labelled)


def mean_accuracy(counts: NDArray[Any], *, whole: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Mean of `class_accuracy` over the classes that are labelled; (…).

    Args:
        counts: as for `class_iou`.
        whole: as for `mean_iou`: not a number where a class that the set labels is not labelled.
    """
    return _where_complete(known_mean(class_accuracy(counts)), counts, whole)


def pixel_accuracy(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Share of all labelled pixels whose class is right; (…)."""
    right, labelled, _ = _columns(counts)
    return ratio(right.sum(axis=-1), labelled.sum(axis=-1))


@dataclass(frozen=True)
class ClassSegmentation:
    """One class's row of the table.

    Attributes:
        name: of the class.
        pixels: that are labelled as the class.
        iou: intersection over union; None where the class is neither labelled nor predicted.
        accuracy: share of its pixels that are taken for it; None where there are none.
        precision: share of the pixels taken for it that are of it; None where there are none.
        boundary_f: mean of its boundary F over the images in which it has a boundary; None where there are none, or
            boundaries were not looked at.
    """

    name: str
    pixels: int
    iou: float | None
    accuracy: float | None
    precision: float | None
    boundary_f: float | None


@dataclass(frozen=True, eq=False)
class SegmentationMetrics:
    """What `segmentation_metrics` finds in a split.

    Attributes:
        num_images: N.
        num_classes: K.
        absent: names of the classes that are neither labelled nor predicted, and left out of the mean IoU.
        miou: mean IoU, see `mean_iou`.
        pixel_accuracy: share of the labelled pixels that are right.
        mean_accuracy: mean of the classes' accuracies.
        boundary_f: mean of the classes' boundary F; None where boundaries were not looked at, or there are none.
        confusion: (K, K) int64 counts of pixels; a row is a true class, a column a predicted one.
        per_class: K rows of the table.
        extra: further metrics by name, where others were asked for.
    """

    num_images: int
    num_classes: int
    absent: tuple[str, ...]
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    boundary_f: float | None
    confusion: NDArray[np.int64]
    per_class: tuple[ClassSegmentation, ...]
    extra: Mapping[str, float] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """The number of a metric, which is an attribute or an extra one; None where it has none here."""
        found: float | None = self.extra[name] if name in self.extra else getattr(self, name)
        return found

    def summary(self) -> dict[str, float]:
        """The numbers that stand in the record of an epoch."""
        names = ("miou", "pixel_accuracy", "mean_accuracy", "boundary_f")
        return {name: value for name in names if (value := self.value(name)) is not None} | dict(self.extra)

    def to_dict(self, *, tables: bool = True) -> dict[str, Any]:
        """The same as JSON has it: numbers, text, None, lists and dictionaries with the attributes' names.

        Args:
            tables: with `confusion` and `per_class`, which are long.
        """
        long = {"confusion": self.confusion.tolist(), "per_class": [asdict(row) for row in self.per_class]}
        found = vars(self) | {"absent": list(self.absent)} | long
        extra = dict(found.pop("extra"))
        return {name: found[name] for name in found if tables or name not in long} | extra


def segmentation_metrics(
    confusion: Array, class_names: Sequence[str], *, num_images: int, boundary: Array | None = None
) -> SegmentationMetrics:
    """Everything that is reported of a split's counts.

    Args:
        confusion: (K, K) counts, the sum over all images of `pixel_confusion`.
        class_names: K names.
        num_images: N.
        boundary: (N, K, 4) of `boundary_counts`, where boundaries are to be measured. A class's score is the mean
            over images of its F in each (Csurka et al. 2013).

    Raises:
        ValueError: wrong shapes or types, or no pixel is labelled.
    """
    counts, names, images = class_counts(confusion), list(class_names), as_positive_integer("num_images", num_images)
    table = _as_confusion(confusion)
    if table.shape != (len(names), len(names)):
        raise ValueError(f"{len(names)} class names need a confusion of as many rows and columns, got {table.shape}")
    if not table.sum():
        raise ValueError("no pixel of any image is labelled, so that there is nothing to measure")
    edges = np.full(len(names), np.nan)
    if boundary is not None:
        wanted = (images, len(names), 4)
        found = as_tensor("boundary", boundary).cpu().numpy()
        if found.shape != wanted:
            raise ValueError(f"boundary must be of shape (images, classes, 4), here {wanted}, got {found.shape}")
        edges = known_mean(boundary_f(found), axis=0)
    iou, accuracy, precision = class_iou(counts), class_accuracy(counts), ratio(counts[:, 0], counts[:, 2])
    columns = (iou, accuracy, precision, edges)
    return SegmentationMetrics(
        num_images=images,
        num_classes=len(names),
        absent=tuple(name for name, value in zip(names, iou, strict=True) if np.isnan(value)),
        miou=float(mean_iou(counts)),
        pixel_accuracy=float(pixel_accuracy(counts)),
        mean_accuracy=float(mean_accuracy(counts)),
        boundary_f=or_none(known_mean(edges)),
        confusion=table,
        per_class=tuple(
            ClassSegmentation(name, int(pixels), *map(or_none, row))
            for name, pixels, row in zip(names, counts[:, 1], np.stack(columns, axis=1), strict=True)
        ),
    )


def _as_confusion(confusion: Array) -> NDArray[np.int64]:
    """Refuses shares: as whole numbers they would be 0."""
    table: NDArray[Any] = as_tensor("confusion", confusion).cpu().numpy()
    if table.dtype.kind not in "iu":
        raise ValueError(f"confusion must be integers, counts of pixels, got {table.dtype}")
    if table.ndim < 2 or table.shape[-1] != table.shape[-2]:
        raise ValueError(f"confusion must be of shape (…, K, K), got {table.shape}")
    return table.astype(np.int64)


def _within(maps: Tensor, classes: int) -> Tensor:
    return (maps >= 0) & (maps < classes)


def _check_classes(name: str, rows: Tensor, fits: Tensor, start: tuple[int, int], classes: int) -> None:
    """Refuses rows, from a place of an image and a row in it, with values that are no class."""
    if not fits.all():
        y, x = (~fits).nonzero()[0].tolist()
        other = " or be ignore_index" if name == "labels" else ""
        raise ValueError(
            f"{name} must lie in [0, {classes}){other}, got {int(rows[y, x])} in image {start[0]} "
            f"at row {start[1] + y}, column {x}"
        )


def _where_complete(
    values: NDArray[np.float64], counts: NDArray[Any], whole: NDArray[Any] | None
) -> NDArray[np.float64]:
    """Not a number where a class that is labelled in the whole set is not."""
    if whole is None:
        return values
    missing = (_columns(counts)[1] == 0) & (_columns(whole)[1] > 0)
    return np.where(missing.any(axis=-1), np.nan, values)


def _columns(counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if counts.ndim < 2 or counts.shape[-1] != 3:
        raise ValueError(f"counts must be of shape (…, K, 3), as class_counts gives them, got {counts.shape}")
    return counts[..., 0], counts[..., 1], counts[..., 2]
