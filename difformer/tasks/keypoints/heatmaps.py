"""Landmarks as heat maps: what is to be learned, and the points that maps mean.

Points are x, y in pixels of the input, and x = 0.5 is the centre of the first pixel. The cells of a map cover the whole
input: where it has a stride of s pixels, cell j has its centre at x = (j + 0.5) s.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# What stands for zero where a logarithm is taken.
_LEAST = 1e-10


def heatmap_targets(
    points: Tensor, visible: Tensor, size: Sequence[int], canvas: Sequence[int], sigma: float = 2.0
) -> Tensor:
    """The heat maps that are learned: Gaussians of height 1 around the exact points, and not around the cells they lie
    in (Zhang et al. 2020, DARK, arXiv 1910.06278).

    Args:
        points: (B, K, 2) x, y in pixels of the input.
        visible: (B, K) bool.
        size: (h, w) of the heat maps.
        canvas: (H, W) of the input in pixels.
        sigma: standard deviation in cells, above 0.

    Returns:
        (B, K, h, w) float32 in [0, 1]; 0 everywhere for points that are not visible, which a loss leaves out.

    Raises:
        ValueError: points of another shape or number.
    """
    if points.ndim != 3 or points.shape[2] != 2 or visible.shape != points.shape[:2]:
        raise ValueError(
            f"points must be (B, K, 2) and visible (B, K), got {tuple(points.shape)} and {tuple(visible.shape)}"
        )
    cells = points.float() / _strides(points, size, canvas) - 0.5
    columns, rows = (
        torch.exp(-((torch.arange(length, device=points.device) - cells[..., axis, None]) ** 2) / (2 * sigma**2))
        for axis, length in ((0, size[1]), (1, size[0]))
    )
    return torch.where(visible[..., None, None], rows[..., :, None] * columns[..., None, :], 0.0)


@torch.no_grad()
def decode_heatmaps(heatmaps: Tensor, canvas: Sequence[int], sigma: float = 2.0) -> tuple[Tensor, Tensor]:
    """The points of heat maps, to parts of a cell.

    First the cell around which a Gaussian of `sigma` fits best: a matched filter over the norm of the part of the
    Gaussian that lies within the map, which is least squares, also where the border cuts the Gaussian off. Then, along
    each axis, the maximum of the parabola through the logarithms of the fit at this cell and its two neighbours, at
    most half a cell away. That a Gaussian is a parabola in logarithms is from Zhang et al. 2020 (DARK, arXiv
    1910.06278), who smooth the map and take one Newton step. It is computed in float32, also in mixed precision.

    Args:
        heatmaps: (B, K, h, w).
        canvas: (H, W) of the input in pixels.
        sigma: standard deviation of the targets in cells, above 0.

    Returns:
        (B, K, 2) float32 x, y in pixels of the input, and (B, K) the heights of the highest cells.
    """
    maps = heatmaps.float()
    with torch.autocast(maps.device.type, enabled=False):
        logs = _matched(maps, sigma).clamp(min=_LEAST).log()
    height, width = maps.shape[2:]
    best = logs.flatten(2).argmax(dim=2)
    row, column = best // width, best % width
    x = column + _offset([_at(logs, row, column + step) for step in (-1, 0, 1)], column, width)
    y = row + _offset([_at(logs, row + step, column) for step in (-1, 0, 1)], row, height)
    points = (torch.stack([x, y], dim=2) + 0.5) * _strides(maps, maps.shape[2:], canvas)
    return points, maps.flatten(2).amax(dim=2)


def _strides(like: Tensor, size: Sequence[int], canvas: Sequence[int]) -> Tensor:
    """Pixels of the input for each cell, along x and y."""
    return torch.tensor([canvas[1] / size[1], canvas[0] / size[0]], dtype=torch.float32, device=like.device)


def _matched(maps: Tensor, sigma: float) -> Tensor:
    """How well a Gaussian around each cell fits to maps (B, K, h, w): their product over the norm of the Gaussian's
    part that lies within the map."""
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-radius, radius + 1, device=maps.device) ** 2) / (2 * sigma**2))
    for kernel in (weights[None, None, :, None], weights[None, None, None, :]):
        padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        norm = F.conv2d(torch.ones_like(maps[:1, :1]), kernel**2, padding=padding).sqrt()
        maps = F.conv2d(maps.flatten(0, 1)[:, None], kernel, padding=padding).view_as(maps) / norm
    return maps


def _at(maps: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Values (B, K) of maps (B, K, h, w) at one place each, the nearest that there is."""
    height, width = maps.shape[2:]
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return maps.flatten(2).gather(2, place[..., None])[..., 0]


def _offset(values: Sequence[Tensor], place: Tensor, length: int) -> Tensor:
    """How far from the middle one of three values the maximum of the parabola through them lies; 0 at the border."""
    before, middle, after = values
    curvature = before - 2 * middle + after
    inside = (place > 0) & (place < length - 1) & (curvature < 0)
    slope = (after - before) / 2
    return torch.where(inside, -slope / torch.where(inside, curvature, -1.0), 0.0).clamp(-0.5, 0.5)
