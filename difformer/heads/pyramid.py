"""Maps of several blocks and timesteps by resolution, and what dense heads do with them: convolve, resize, fuse."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import (
    NORM_GROUPS,
    Size,
    as_json_size,
    as_positive_integer,
    as_size,
    check_choice,
    shown,
    sides,
    size_of,
)
from difformer.heads._inputs import check_specs
from difformer.taps import FeatureKey, TapSpec

NormName = Literal["batch", "group"]

_NEEDS_SIZE = "counts pixels of the image: give image_size, that of the images that the specs are for"


class Pyramid:
    """The features of several blocks, timesteps and rounds as levels, the finest first.

    Features of one size are one level: their channels stand one after the other, in the order of the specs.

    Args:
        specs: the features it reads; an extractor's `specs`.
        image_size: of the images that the specs are for, a side or (h, w), from which the strides follow: the
            extractor's `image_size`, or the backbone's where that is None.
        finest_stride: maps with a smaller stride are averaged to this one, and belong to its level.

    Attributes:
        specs: as given.
        keys: the features of each level.
        channels: of each level, all its features together.
        arguments: `image_size` and `finest_stride`, as JSON types.

    Raises:
        ValueError: no specs, maps that have no order, maps that do not divide the images evenly, or a `finest_stride`
            without image size or that is no multiple of a finer map's stride.
    """

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        *,
        image_size: Size | None = None,
        finest_stride: int | None = None,
    ) -> None:
        self.specs = check_specs(specs)
        size = None if image_size is None else as_size("image_size", image_size)
        finest = None if finest_stride is None else as_positive_integer("finest_stride", finest_stride)
        self.arguments: dict[str, Any] = {
            "image_size": None if size is None else as_json_size(size),
            "finest_stride": finest,
        }
        own = {} if size is None else {key: _stride(key, spec, size) for key, spec in self.specs.items()}
        if finest is not None and not own:
            raise ValueError(f"finest_stride {finest} {_NEEDS_SIZE}")
        self._ratios = {key: 1 if finest is None else _ratio(key, own[key], finest) for key in self.specs}
        cells = {
            key: (-(-spec.height // self._ratios[key]), -(-spec.width // self._ratios[key]))
            for key, spec in self.specs.items()
        }
        ordered = sorted(set(cells.values()), reverse=True)
        if any(wide < narrow for (_, wide), (_, narrow) in pairwise(ordered)):
            listed = ", ".join(shown(size_of(*one)) for one in ordered)
            raise ValueError(
                f"maps of {listed} are no pyramid: each level must be at least as high and wide as the next"
            )
        self.keys = tuple(tuple(key for key in self.specs if cells[key] == one) for one in ordered)
        self.channels = tuple(sum(self.specs[key].channels for key in keys) for keys in self.keys)
        self._strides = tuple(own[keys[0]] * self._ratios[keys[0]] for keys in self.keys) if own else ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image for each cell, by level; raises ValueError without an image size."""
        if not self._strides:
            raise ValueError(f"a stride {_NEEDS_SIZE}")
        return self._strides

    def scale_to(self, stride: int) -> int:
        """How many times the finest level's stride another one is; raises ValueError where it does not divide it."""
        scale, rest = divmod(self.strides[0], stride)
        if rest:
            raise ValueError(f"stride must divide that of the finest level, {self.strides[0]}, got {stride}")
        return scale

    def __call__(self, features: Mapping[FeatureKey, Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        """The levels.

        Args:
            features: (B, C, h, w) by key; more may be there.
            dtype: of the levels; that of the features when left out.

        Returns:
            (B, channels, h, w), the finest first.

        Raises:
            ValueError: features of one level have maps of different sizes.
        """
        levels = []
        for keys in self.keys:
            maps = []
            for key in keys:
                one, ratio = features[key].to(dtype or features[key].dtype), self._ratios[key]
                maps.append(one if ratio == 1 else F.avg_pool2d(one, ratio, ceil_mode=True, count_include_pad=False))
            if len({one.shape[2:] for one in maps}) > 1:
                sizes = {key: shown(size_of(*one.shape[2:])) for key, one in zip(keys, maps, strict=True)}
                raise ValueError(f"features of one level must have maps of one size, got {sizes}")
            levels.append(maps[0] if len(maps) == 1 else torch.cat(maps, dim=1))
        return levels


def _stride(key: FeatureKey, spec: TapSpec, image_size: Size) -> int:
    (height, width), (rows, columns) = sides(image_size), (spec.height, spec.width)
    stride = height // rows
    if (rows * stride, columns * stride) != (height, width):
        raise ValueError(
            f"the map of {key}, {rows}×{columns}, does not divide images of {height}×{width} evenly; image_size must "
            "be that of the images that the specs are for"
        )
    return stride


def _ratio(key: FeatureKey, stride: int, finest: int) -> int:
    if stride < finest and finest % stride:
        raise ValueError(f"finest_stride must be a multiple of the stride of {key}, {stride}, got {finest}")
    return max(1, finest // stride)


class ConvNorm(nn.Sequential):
    """Convolution without bias, norm and ReLU, named and initialised as mmseg's `ConvModule`: `conv`, `bn` or `gn`.

    Args:
        in_channels, out_channels, kernel_size: of the convolution, which keeps the map's size.
        norm: "batch", or "group" with 32 groups, which any number of images can be trained with.

    Raises:
        ValueError: unknown norm, or group norm of a width that is no multiple of 64 (two channels a group).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: NormName) -> None:
        check_choice("norm", norm, ("batch", "group"))
        if norm == "group" and out_channels % (2 * NORM_GROUPS):
            raise ValueError(
                f"norm='group' needs a width that is a multiple of {2 * NORM_GROUPS}, got {out_channels}; choose "
                "another, or norm='batch'"
            )
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        batch = norm == "batch"
        normed: nn.Module = nn.BatchNorm2d(out_channels) if batch else nn.GroupNorm(NORM_GROUPS, out_channels)
        super().__init__(OrderedDict([("conv", conv), ("bn" if batch else "gn", normed), ("activate", nn.ReLU())]))


def classifier_of_maps(width: int, num_classes: int) -> nn.Conv2d:
    """The 1×1 convolution that gives logits, with mmseg's initial weights: N(0, 0.01²), biases 0."""
    layer = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Args: maps (B, C, h, w); size, the new (h, w). Returns them resized bilinearly, corners not aligned."""
    return maps if maps.shape[2:] == tuple(size) else F.interpolate(maps, size=tuple(size), mode="bilinear")


def top_down(laterals: Sequence[Tensor]) -> list[Tensor]:
    """Adds to each level what comes from all coarser ones (Lin et al. 2017, section 3), resized bilinearly.

    Args:
        laterals: (B, C, h, w), the finest first.

    Returns:
        As many of the same shapes.
    """
    levels = list(laterals)
    for i in range(len(levels) - 1, 0, -1):
        levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1].shape[2:])
    return levels


def at_the_finest(levels: Sequence[Tensor]) -> Tensor:
    """Levels (B, C_i, h_i, w_i) at the size of the first, with their channels one after the other."""
    return torch.cat([resize(level, levels[0].shape[2:]) for level in levels], dim=1)


def linear_of_pixels(levels: Sequence[Tensor], layer: nn.Linear, size: Sequence[int]) -> Tensor:
    """A linear layer of each pixel's features, which are all levels resized and put one after the other.

    Resizing and the layer are both linear and the weights of the former sum to 1, so each level goes through its part
    of the layer first: what is resized has the layer's outputs as channels, and not its inputs.

    Args:
        levels: (B, C_i, h_i, w_i).
        layer: of the sum of all C_i inputs.
        size: (h, w) of the pixels.

    Returns:
        (B, outputs, h, w), equal to `layer` of the resized levels up to rounding.
    """
    parts = layer.weight.split([level.shape[1] for level in levels], dim=1)
    total: Tensor = layer.bias[:, None, None]
    for level, part in zip(levels, parts, strict=True):
        total = total + resize(F.conv2d(level, part[..., None, None]), size)
    return total


def pixels_at(levels: Sequence[Tensor], size: Sequence[int], places: Tensor) -> Tensor:
    """The features of single pixels, as resizing all levels bilinearly would give them.

    Args:
        levels: (B, C_i, h_i, w_i).
        size: (h, w) of the resized levels.
        places: (P, 3) int64: image, row and column of each pixel.

    Returns:
        (P, C), C being the sum of all C_i.

    Raises:
        ValueError: places of another shape or type, or outside.
    """
    limits = (len(levels[0]), *size)
    if places.ndim != 2 or places.shape[1] != 3 or places.dtype != torch.int64:
        raise ValueError(
            f"places must be (P, 3) int64, image, row and column, got {tuple(places.shape)} {places.dtype}"
        )
    if len(places) and (places.amin() < 0 or any(places[:, i].amax() >= limit for i, limit in enumerate(limits))):
        raise ValueError(f"places must lie within {limits[0]} images of {limits[1]}×{limits[2]} pixels, got {places}")
    image, found = places[:, 0], []
    for level in levels:
        (top, bottom, down), (left, right, along) = (
            _neighbours(places[:, axis], size[axis - 1], level.shape[axis + 1]) for axis in (1, 2)
        )
        down, along = down.to(level.dtype)[:, None], along.to(level.dtype)[:, None]
        upper = torch.lerp(level[image, :, top, left], level[image, :, top, right], along)
        lower = torch.lerp(level[image, :, bottom, left], level[image, :, bottom, right], along)
        found.append(torch.lerp(upper, lower, down))
    return torch.cat(found, dim=1)


def _neighbours(places: Tensor, length: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells before and after each place of an axis, and how far it is on the way from one to the other."""
    exact = ((places.double() + 0.5) * (cells / length) - 0.5).clamp(min=0)
    before = exact.floor().long().clamp(max=cells - 1)
    return before, (before + 1).clamp(max=cells - 1), exact - before
