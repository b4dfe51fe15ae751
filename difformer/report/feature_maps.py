"""What features look like, as a picture."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difformer.analysis import pca_maps
from difformer.report._figure import block_label, new_figure, save_figure
from difformer.taps import FeatureKey

_GAP = 0.04
_INCHES = 1.9


def draw_feature_maps(images: Tensor, features: Mapping[FeatureKey, Tensor], path: Path) -> None:
    """Draws the first three principal components of feature maps as colours, as a PNG.

    The images are tiled in the first column. To their right there is one panel for each block and timestep, with the
    maps tiled in the same way; rows are timesteps from small to large, columns blocks in the order of the mapping.
    Colours can be compared within a panel, where the components are those of all its images, and not between panels.

    Args:
        images: (N, 3, H, W) in [-1, 1]; what is outside is clipped.
        features: (N, C, h, w) by key.
        path: the file; replaced when it is there.

    Raises:
        ValueError: no features, or wrong shapes or values.
        OSError: it cannot be written.
    """
    _check(images, features)
    blocks = list(dict.fromkeys((key.tap, key.round) for key in features))
    timesteps = sorted({key.t for key in features})
    width, height = 1 + len(blocks), len(timesteps)
    aspect = images.shape[2] / images.shape[3]
    figure = new_figure(_INCHES * width + 0.5, _INCHES * aspect * height + 0.6)
    figure.set_layout_engine("compressed")
    panels = figure.subplots(height, width, squeeze=False)
    pixels = (images.detach().cpu().float().clamp(-1, 1).permute(0, 2, 3, 1) + 1) / 2
    for t, row in zip(timesteps, panels, strict=True):
        _tile(row[0], pixels, aspect)
        row[0].set_ylabel(f"t = {t}", fontsize=11)
        for block, axes in zip(blocks, row[1:], strict=True):
            feature = features.get(FeatureKey(block[0], t, block[1]))
            # White where there is nothing.
            _tile(axes, torch.ones_like(pixels) if feature is None else pca_maps(feature), aspect)
    panels[0, 0].set_title("Images", fontsize=10)
    for block, axes in zip(blocks, panels[0, 1:], strict=True):
        shapes = {feature.shape[1:] for key, feature in features.items() if (key.tap, key.round) == block}
        sizes = [f"{h} × {w}, {channels} channels" for channels, h, w in shapes]
        axes.set_title("\n".join([block_label(FeatureKey(block[0], 0, block[1])), *sizes]), fontsize=10)
    save_figure(figure, path)


def _tile(axes: Any, maps: Tensor, aspect: float) -> None:
    """Draws maps (N, h, w, 3) in [0, 1] in rows of about as many as there are rows."""
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    for place, content in enumerate(maps.numpy()):
        top, left = place // columns * (aspect + _GAP), place % columns * (1 + _GAP)
        axes.imshow(content, extent=(left, left + 1, top + aspect, top), interpolation="nearest", vmin=0, vmax=1)
    axes.set(xlim=(0, columns * (1 + _GAP) - _GAP), ylim=(rows * (aspect + _GAP) - _GAP, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _check(images: Tensor, features: Mapping[FeatureKey, Tensor]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"images must be of shape (N, 3, H, W), got {tuple(images.shape)}")
    if not features:
        raise ValueError("there are no features to draw; give at least one")
    for key, feature in features.items():
        if feature.ndim != 4 or len(feature) != len(images):
            raise ValueError(f"{key} must be of shape ({len(images)}, C, h, w), got {tuple(feature.shape)}")
