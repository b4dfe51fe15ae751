"""Landmarks as heat maps: one map a point, highest where it lies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_positive_number
from difformer.heads._inputs import MapSides, describe, receive
from difformer.heads.pyramid import ConvNorm, NormName, Pyramid, classifier_of_maps, resize, top_down
from difformer.heads.registry import HEADS
from difformer.taps import FeatureKey, TapSpec

# What stands for zero where a logarithm is taken.
_LEAST = 1e-10


@HEADS.register("heatmap")
class HeatmapHead(nn.Module):
    """One heat map a point, from all levels of the pyramid added up at one stride.

    Points are x, y in pixels of the image, and x = 0.5 is the centre of the first pixel; cell j of a map with stride s
    has its centre at x = (j + 0.5) s.

    Args:
        specs: the features it reads, a level of the pyramid for each size; see `Pyramid`.
        num_classes: how many points there are.
        stride: pixels of the image for each cell of the heat maps. Finer levels are averaged to it, and where all are
            coarser, their sum is resized to it.
        sigma: standard deviation of the targets in cells.
        width: of all levels.
        norm: "batch", or "group", for which `width` is a multiple of 64.
        image_size: see `Pyramid`; it must be given.

    Raises:
        ValueError: as `Pyramid`, a bad number or norm, or a stride that does not divide that of the finest level.
    """

    gives = "points"

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        stride: int = 4,
        sigma: float = 2.0,
        width: int = 256,
        norm: NormName = "batch",
        image_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.stride = as_positive_integer("stride", stride)
        self.sigma = as_positive_number("sigma", sigma)
        self.pyramid = Pyramid(specs, image_size=image_size, finest_stride=self.stride)
        self.specs = self.pyramid.specs
        self.map_sizes: dict[FeatureKey, Size | None] = dict.fromkeys(self.specs)
        self.learned_from: set[MapSides] = set()
        self.num_classes = as_positive_integer("num_classes", num_classes)
        self.scale = self.pyramid.scale_to(self.stride)
        width = as_positive_integer("width", width)
        self.arguments: dict[str, Any] = {
            "stride": self.stride, "sigma": self.sigma, "width": width, "norm": norm,
            "image_size": self.pyramid.arguments["image_size"],
        }  # fmt: skip
        self.lateral_convs = nn.ModuleList(ConvNorm(channels, width, 1, norm) for channels in self.pyramid.channels)
        self.convs = nn.Sequential(ConvNorm(width, width, 3, norm), ConvNorm(width, width, 3, norm))
        self.heatmaps = classifier_of_maps(width, self.num_classes)

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Args: features, (B, C, h, w) by key. Returns heat maps (B, num_classes, h, w) at the stride.

        Raises:
            ValueError: see `receive` and `Pyramid`.
        """
        levels = self.pyramid(receive(self, features), self.heatmaps.weight.dtype)
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=True)]
        finest, *_ = top_down(laterals)
        size = (finest.shape[2] * self.scale, finest.shape[3] * self.scale)
        return self.heatmaps(self.convs(resize(finest, size)))

    def targets(self, points: Tensor, visible: Tensor, size: Sequence[int]) -> Tensor:
        """The heat maps that are learned: Gaussians of height 1 around the exact points, and not around the cells they
        lie in (Zhang et al. 2020, DARK, arXiv 1910.06278).

        Args:
            points: (B, K, 2) x, y in pixels of the image.
            visible: (B, K) bool.
            size: (h, w) of the heat maps.

        Returns:
            (B, K, h, w) float32 in [0, 1]; 0 everywhere for points that are not visible, which a loss leaves out.

        Raises:
            ValueError: points of another shape or number.
        """
        if points.shape[1:] != (self.num_classes, 2) or visible.shape != points.shape[:2]:
            raise ValueError(
                f"points must be (B, {self.num_classes}, 2) and visible (B, {self.num_classes}), got "
                f"{tuple(points.shape)} and {tuple(visible.shape)}"
            )
        cells = points.float() / self.stride - 0.5
        columns, rows = (
            torch.exp(
                -((torch.arange(length, device=points.device) - cells[..., axis, None]) ** 2) / (2 * self.sigma**2)
            )
            for axis, length in ((0, size[1]), (1, size[0]))
        )
        return torch.where(visible[..., None, None], rows[..., :, None] * columns[..., None, :], 0.0)

    @torch.no_grad()
    def decode(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """The points of heat maps, to parts of a cell.

        First the cell around which a Gaussian of `sigma` fits best: a matched filter over the norm of the part of the
        Gaussian that lies within the map, which is least squares, also where the border cuts the Gaussian off. Then,
        along each axis, the maximum of the parabola through the logarithms of the fit at this cell and its two
        neighbours, at most half a cell away. That a Gaussian is a parabola in logarithms is from Zhang et al. 2020
        (DARK, arXiv 1910.06278), who smooth the map and take one Newton step. It is computed in float32, also in mixed
        precision.

        Args:
            heatmaps: (B, K, h, w).

        Returns:
            (B, K, 2) float32 x, y in pixels of the image, and (B, K) the heights of the highest cells.
        """
        maps = heatmaps.float()
        with torch.autocast(maps.device.type, enabled=False):
            logs = _matched(maps, self.sigma).clamp(min=_LEAST).log()
        height, width = maps.shape[2:]
        best = logs.flatten(2).argmax(dim=2)
        row, column = best // width, best % width
        x = column + _offset([_at(logs, row, column + step) for step in (-1, 0, 1)], column, width)
        y = row + _offset([_at(logs, row + step, column) for step in (-1, 0, 1)], row, height)
        return (torch.stack([x, y], dim=2) + 0.5) * self.stride, maps.flatten(2).amax(dim=2)


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
