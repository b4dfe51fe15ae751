"""How well the boundaries of classes agree: the boundary F score.

A pixel is on the boundary of its class where one of the four pixels beside it is of another class: a line of one pixel
inside the region. The border of the image is no boundary, nor is that of pixels whose class is not known.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis._inputs import Array, as_class_maps
from difformer.config import as_positive_integer, as_positive_number
from difformer.maps import as_ignore_index

# Farther than any pixel of an image.
_FAR = 1 << 24


def boundary_counts(
    predicted: Array, labels: Array, num_classes: int, *, tolerance: float = 0.0075, ignore_index: int = 255
) -> Tensor:
    """Counts of each image's boundary pixels by class, and of those that are near a boundary of the other map.

    Args:
        predicted: (B, H, W) integers in [0, num_classes).
        labels: (B, H, W) integers in [0, num_classes), or `ignore_index`; there, the prediction is left out too.
        num_classes: K; other values are not counted, and not refused as `pixel_confusion` does.
        tolerance: how far is near, as a share of the image's diagonal; 0.0075 in Csurka et al. 2013. Distances are
            Euclidean, between the centres of pixels, so that below one pixel only the same place is near.
        ignore_index: outside [0, num_classes).

    Returns:
        (B, K, 4) int64 on the labels' device: predicted boundary pixels that are near a labelled one of their class,
        all predicted ones, labelled ones that are near a predicted one, all labelled ones.

    Raises:
        ValueError: wrong shapes, types or values.
    """
    classes = as_positive_integer("num_classes", num_classes)
    ignored = as_ignore_index(ignore_index, classes)
    found, truth = as_class_maps(predicted, labels)
    radius = as_positive_number("tolerance", tolerance) * math.hypot(*truth.shape[1:])
    counts = torch.zeros(len(truth), classes, 4, dtype=torch.int64, device=truth.device)
    for table, own, other in zip(counts, truth, found.to(truth.device), strict=True):
        own, other = own.long(), other.long()
        known = own != ignored
        own, other = (torch.where(_boundary(maps, known), maps, -1) for maps in (own, other))
        for number in torch.cat([own.unique(), other.unique()]).unique().tolist():
            if 0 <= number < classes:
                a, b = other == number, own == number
                found_of_class = [_near(a, b, radius), int(a.sum()), _near(b, a, radius), int(b.sum())]
                table[number] = torch.tensor(found_of_class)
    return counts


def boundary_f(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Harmonic mean of the shares of boundary pixels that are near one of the other map (Csurka et al. 2013).

    Args:
        counts: (…, 4) of `boundary_counts`. Of a single image they give its score, and the mean of these over images is
            that paper's; summed over images they give one score in which an image weighs by its boundaries.

    Returns:
        (…) in [0, 1]: 0 where one of the maps has no boundary, or none is near; not a number where neither has one.
    """
    near_predicted, predicted, near_labelled, labelled = np.moveaxis(counts.astype(np.float64), -1, 0)
    precision, recall = near_predicted / np.maximum(predicted, 1), near_labelled / np.maximum(labelled, 1)
    total = precision + recall
    score = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return np.where(predicted + labelled > 0, score, np.nan)


def _boundary(maps: Tensor, known: Tensor) -> Tensor:
    """(H, W): known pixels beside a known one of another class."""
    found = torch.zeros_like(known)
    for axis in (0, 1):
        length = maps.shape[axis] - 1
        first, second = maps.narrow(axis, 0, length), maps.narrow(axis, 1, length)
        change = (first != second) & known.narrow(axis, 0, length) & known.narrow(axis, 1, length)
        found.narrow(axis, 0, length).logical_or_(change)
        found.narrow(axis, 1, length).logical_or_(change)
    return found


def _near(points: Tensor, others: Tensor, radius: float) -> int:
    """How many points (H, W) are no farther from one of the others than the radius."""
    height, width = others.shape
    columns = torch.arange(width, dtype=torch.int32, device=others.device).expand(height, width)
    # The distance to the nearest of the others in the same row; then a point looks up and down its column.
    left = torch.where(others, columns, -_FAR).cummax(dim=1).values
    right = torch.where(others, columns, _FAR).flip(1).cummin(dim=1).values.flip(1)
    beside = torch.minimum(columns - left, right - columns)
    y, x = points.nonzero(as_tuple=True)
    count, reach = len(y), min(int(radius), height - 1)
    # The nearest rows first: most points are found in them, and need not look further.
    for offset in sorted(range(-reach, reach + 1), key=abs):
        inside = (y + offset >= 0) & (y + offset < height)
        distance = beside[(y + offset).clamp(0, height - 1), x].long()
        far = ~inside | (distance.square() + offset**2 > radius**2)
        y, x = y[far], x[far]
    return count - len(y)
