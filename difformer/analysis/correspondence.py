"""Which places of two images correspond, by the cosine similarity of their features, without training.

The protocol of DIFT (Tang et al. 2023, section 4): both maps are enlarged to their images' sizes, bilinearly, and a
point of one image corresponds to the pixel of the other whose feature is most similar to its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis._inputs import Array, as_numbers, as_tensor
from difformer.analysis._means import known_mean
from difformer.analysis.keypoints import near_points
from difformer.config import Size, as_size, sides

# Similarities, or values of an enlarged map, that are held at once: 64 MB in float64.
_CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True, eq=False)
class Matches:
    """Where points of one image are in another.

    Attributes:
        points: (P, 2) float32 x, y in pixels of the other image, where (0.5, 0.5) is the centre of the first pixel.
        similarity: (P,) float32 in [-1, 1], the cosine of the features there.
        mutual: (P,) whether the way back from there ends where it began, to within one position of the feature map in x
            and in y; None where that was not looked at.
    """

    points: Tensor
    similarity: Tensor
    mutual: Tensor | None


def match(
    features_a: Array,
    features_b: Array,
    points: Array,
    *,
    size_a: Size,
    size_b: Size,
    subpixel: bool = False,
    mutual: bool = False,
) -> Matches:
    """Finds points of image a in image b.

    The memory does not depend on the number of points beyond their own features and results: similarities are computed
    at the features' resolution, enlarged a few points at a time, and divided by the lengths of the enlarged features,
    which gives the cosine of the enlarged features. They are computed in float64 and compared in float32: pixels that
    are equally similar, such as those beyond the centres of a map's last positions, are so after rounding too, and
    what is found for a point does not depend on the others.

    Args:
        features_a: (C, h, w) finite, of any floating-point type, such as several maps along C.
        features_b: (C, h', w') the same of image b.
        points: (P, 2) x, y in pixels of image a, in [0, W] × [0, H]; (0.5, 0.5) is the centre of the first pixel. A
            point between pixels has the feature between theirs.
        size_a, size_b: of the images, (h, w) or the side of a square; the points found are centres of image b's pixels.
        subpixel: move each point found to the top of the parabola through its similarity and that one position of the
            feature map before and after it, in x and in y; by half a position at most, and not at the border.
        mutual: look whether the way back ends where it began.

    Returns:
        On the device of `features_a`; computed there where that is a CUDA device, else on the CPU. Of equal
        similarities the first pixel in rows is found. A feature of zeros has similarity 0 to everything.

    Raises:
        ValueError: wrong shapes, types or values, or a point outside image a.
    """
    a, b = _as_map("features_a", features_a), _as_map("features_b", features_b)
    if len(a) != len(b):
        raise ValueError(f"both features must have the same channels, got {len(a)} and {len(b)}")
    device = a.device
    # Apple's GPUs have no float64.
    a, b = (x.to(device if device.type == "cuda" else "cpu").double() for x in (a, b))
    area_a, area_b = sides(as_size("size_a", size_a)), sides(as_size("size_b", size_b))
    start = torch.from_numpy(as_numbers("points", points, (None, 2))).to(a)
    inside = (start >= 0).all(dim=1) & (start <= start.new_tensor(area_a[::-1])).all(dim=1)
    if not inside.all():
        place = int((~inside).nonzero()[0])
        raise ValueError(
            f"points must lie in the image of {area_a[0]} × {area_a[1]} pixels (h × w), got x, y = "
            f"{start[place].tolist()} for point {place}"
        )
    queries = _read(a, start, area_a)
    found, similarity = _most_similar(queries, b, area_b)
    if subpixel:
        found = _refine(queries, b, found, area_b)
    back = None
    if mutual:
        again, _ = _most_similar(_read(b, found, area_b), a, area_a)
        back = ((again - start).abs() <= _position(a, area_a)).all(dim=1)
    return Matches(found.float().to(device), similarity.to(device), None if back is None else back.to(device))


@dataclass(frozen=True, eq=False)
class PairScores:
    """PCK of pairs of images.

    Attributes:
        per_pair: (N,) share of each pair's points that are correct; not a number for a pair without points.
        per_image: their mean, over the pairs with points.
        per_point: share of all points that are correct.
    """

    per_pair: NDArray[np.float64]
    per_image: float
    per_point: float


def pairs_pck(predicted: Sequence[Array], true: Sequence[Array], lengths: Array, *, alpha: float = 0.1) -> PairScores:
    """Percentage of correct keypoints, as shares in [0, 1], of pairs that have different numbers of points.

    SPair-71k's PCK@0.1 (Min et al. 2019, section 4) takes the longer side of the box of the second image's object as
    length (`box_lengths`). Papers report either mean: say which.

    Args:
        predicted: N × (P_i, 2) x, y that were found in the second image.
        true: N × (P_i, 2), where they are.
        lengths: (N,) above 0.
        alpha: above 0.

    Raises:
        ValueError: wrong shapes, types or values, or no points at all.
    """
    if len(predicted) != len(true):
        raise ValueError(f"predicted and true must be of the same pairs, got {len(predicted)} and {len(true)}")
    wide = as_numbers("lengths", lengths, (len(true),))
    hits = []
    for pair, (one, other) in enumerate(zip(predicted, true, strict=True)):
        wanted = as_numbers(f"the true points of pair {pair}", other, (None, 2))
        errors = np.linalg.norm(as_numbers(f"the points of pair {pair}", one, wanted.shape) - wanted, axis=1)
        if not (np.isfinite(errors).all() and np.isfinite(wide[pair])):
            raise ValueError(f"points and length of pair {pair} must be finite, got errors {errors} over {wide[pair]}")
        hits.append(near_points(errors[None], wide[pair : pair + 1], alpha)[0])
    if not sum(map(len, hits)):
        raise ValueError(f"none of {len(hits)} pairs has points, so that there is nothing to measure")
    per_pair = np.array([float(known_mean(one)) for one in hits])
    return PairScores(per_pair, float(np.nanmean(per_pair)), float(np.concatenate(hits).mean()))


def _as_map(name: str, features: Array) -> Tensor:
    maps = as_tensor(name, features).detach()
    if not maps.dtype.is_floating_point or maps.ndim != 3 or not maps.numel():
        raise ValueError(f"{name} must be floating-point numbers (C, h, w), got {maps.dtype} {tuple(maps.shape)}")
    if not torch.isfinite(maps).all():
        place = (~torch.isfinite(maps)).nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, got {maps[tuple(place)].item()} at (channel, row, column) {place}")
    return maps


def _position(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(2,) width and height of a position of a map in pixels of its image."""
    return features.new_tensor([size[1] / features.shape[2], size[0] / features.shape[1]])


def _read(features: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """(P, C) features of unit length at points of an image: those of the enlarged map, and between its pixels too."""
    grid = 2 * points / points.new_tensor(size[::-1]) - 1
    found = F.grid_sample(features[None], grid[None, None], padding_mode="border", align_corners=False)
    return F.normalize(found[0, :, 0].T, dim=1)


def _most_similar(queries: Tensor, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(P, 2) centres of the pixels that are most similar to the queries, and (P,) float32 how similar they are."""
    step = max(1, _CHUNK_ELEMENTS // math.prod(size))
    lengths = _lengths(features, size)
    best = [torch.zeros(0, device=queries.device)]
    places = [torch.zeros(0, dtype=torch.int64, device=queries.device)]
    for some in queries.split(step) if len(queries) else ():
        similarity = _enlarged(torch.einsum("pc,chw->phw", some, features), size) / lengths
        values, indices = similarity.float().flatten(1).max(dim=1)
        best.append(values)
        places.append(indices)
    place = torch.cat(places)
    centres = torch.stack([place % size[1], place // size[1]], dim=1).to(queries) + 0.5
    return centres, torch.cat(best).clamp(-1, 1)


def _lengths(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) lengths of the enlarged map's features, above 0.

    Only the rows are enlarged: along a row, a feature is a (1 - p) + b p of two neighbours, and its square
    (1 - p)² a·a + p² b·b + 2 p (1 - p) a·b.
    """
    (height, width), columns = size, features.shape[2]
    squares, products = features.new_zeros(height, columns), features.new_zeros(height, columns)
    for channels in features.split(max(1, _CHUNK_ELEMENTS // (height * columns))):
        rows = _enlarged(channels, (height, columns))
        squares += rows.square().sum(dim=0)
        products[:, :-1] += (rows[..., :-1] * rows[..., 1:]).sum(dim=0)
    # As F.interpolate has it: half a pixel, and nothing beyond the first and the last centre.
    place = (torch.arange(width).to(squares) + 0.5) * columns / width - 0.5
    place = place.clamp(0, columns - 1)
    left = place.long()
    right, p = (left + 1).clamp(max=columns - 1), place - left
    apart = (1 - p) ** 2 * squares[:, left] + p**2 * squares[:, right]
    whole = apart + 2 * p * (1 - p) * products[:, left]
    # Where neighbours cancel out, rounding is all that is left. Nothing is divided by 0, as in F.normalize.
    return torch.maximum(whole, 1e-14 * apart).sqrt().clamp(min=1e-12)


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _refine(queries: Tensor, features: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    step, moved = _position(features, size), points.clone()
    for axis in (0, 1):
        shift = torch.zeros_like(step)
        shift[axis] = step[axis]
        before, here, after = (
            (queries * _read(features, points + sign * shift, size)).sum(dim=1) for sign in (-1, 0, 1)
        )
        curvature = before - 2 * here + after
        inside = (points[:, axis] >= step[axis]) & (points[:, axis] <= size[1 - axis] - step[axis])
        top = (before - after) / (2 * torch.where(curvature < 0, curvature, -torch.inf))
        moved[:, axis] += torch.where(inside, top.clamp(-0.5, 0.5) * step[axis], 0)
    return moved
