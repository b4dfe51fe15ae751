"""Nearest images in feature space, and how many of them are of the same class."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.analysis._inputs import Array, as_labels, as_matrix
from difformer.config import as_positive_integer

# Similarities held at once: 128 MB in float32.
_CHUNK_ELEMENTS = 1 << 25


def nearest_images(features: Array, k: int) -> Tensor:
    """The images most like each image by cosine similarity, itself left out.

    Args:
        features: (N, D) finite; a vector of zeros is similar to nothing.
        k: at least 1 and less than N.

    Returns:
        (N, k) int64 places, the most similar first, on the features' device.

    Raises:
        ValueError: wrong shape, type or values, or as many neighbours as images.
    """
    rows = as_matrix("features", features)
    if as_positive_integer("k", k) >= len(rows):
        raise ValueError(f"k must be less than the number of images, {len(rows)}; got {k}")
    unit = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)))
    step = max(1, _CHUNK_ELEMENTS // len(unit))
    found = []
    for start in range(0, len(unit), step):
        similarity = unit[start : start + step] @ unit.T
        similarity.diagonal(start).fill_(-math.inf)
        found.append(similarity.topk(k).indices)
    return torch.cat(found)


def precision_at_k(features: Array, labels: Array, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of the k nearest images that are of an image's own class, averaged over the images.

    Args:
        features: (N, D) finite.
        labels: (N,) integers, not negative.
        ks: numbers of neighbours, each less than N.

    Raises:
        ValueError: wrong shapes, types or ranges.
    """
    if not ks:
        raise ValueError("ks must be at least one number")
    neighbours = nearest_images(features, max(ks)).cpu()
    known = as_labels(labels, len(neighbours), torch.iinfo(torch.int64).max).cpu()
    same = (known[neighbours] == known[:, None]).double()
    return {as_positive_integer("k", k): float(same[:, :k].mean()) for k in ks}
