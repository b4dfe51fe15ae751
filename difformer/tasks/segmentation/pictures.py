"""Masks in colour, and pictures of what a segmentation found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer._optional import require
from difformer.data import IGNORE
from difformer.report._figure import new_figure, save_figure, short
from difformer.tasks.segmentation.inference import Segmented

_OPACITY = 0.55
# Beyond these many classes a legend would be larger than the pictures.
_MOST_IN_LEGEND = 24


def palette() -> NDArray[np.uint8]:
    """(256, 3) colours of Pascal VOC's masks (Everingham et al. 2010): the bits of a number, spread over the channels;
    the last, of pixels that are ignored, is a light grey."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> channel) & 1) << (7 - bit)).astype(np.uint8)
        numbers = numbers >> 3
    colours[IGNORE] = 224
    return colours


def as_palette(labels: Tensor) -> Any:
    """A PIL image of mode P from labels (H, W) uint8: its values are the labels, its palette the colours."""
    image = require("PIL.Image", "writing masks", install="pillow").fromarray(labels.cpu().numpy(), mode="L")
    image.putpalette(palette().tobytes())
    return image


def overlaid(picture: Any, labels: Tensor, names: Sequence[str]) -> Any:
    """An RGB picture with the colours of its labels (H, W) on it; a class named background is left clear."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    numbers = labels.cpu().numpy()
    mixed = (1 - _OPACITY) * pixels + _OPACITY * palette()[numbers]
    clear = np.isin(numbers, [i for i, name in enumerate(names) if name.casefold() == "background"])
    mixed[clear] = pixels[clear]
    return require("PIL.Image", "drawing masks", install="pillow").fromarray(mixed.round().astype(np.uint8))


def draw_segmentation(path: Path, picture: Any, truth: Tensor, found: Segmented, names: Sequence[str]) -> None:
    """Draws image, truth, prediction, errors and uncertainty side by side.

    Args:
        path: the PNG; replaced when it is there.
        picture: RGB PIL image.
        truth: (H, W) uint8, 255 where a pixel is ignored.
        found: of the same size.
        names: of the classes.

    Raises:
        OSError: it cannot be written.
    """
    true, labels = truth.cpu().numpy(), found.labels.cpu().numpy()
    known = true != IGNORE
    errors = np.full((*true.shape, 3), 224, dtype=np.uint8)
    errors[known] = np.where((true == labels)[known][:, None], (235, 235, 235), (200, 40, 40))
    unsure = 1 - found.certainty if found.disagreement is None else found.disagreement
    height = 2.4 * true.shape[0] / true.shape[1]
    figure = new_figure(12.5, height + 0.9)
    panels = figure.subplots(1, 5)
    shown = [
        ("Image", picture, None),
        ("Truth", overlaid(picture, truth, names), None),
        ("Prediction", overlaid(picture, found.labels, names), None),
        (f"Errors ({np.mean(true[known] != labels[known]):.1%})" if known.any() else "Errors", errors, None),
        ("Uncertainty" if found.disagreement is None else "Disagreement", unsure.cpu().numpy(), "magma"),
    ]
    for axes, (title, image, colours) in zip(panels, shown, strict=True):
        axes.imshow(image, cmap=colours, vmin=0 if colours else None, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    there = [number for number in np.union1d(true[known], labels).tolist() if number < len(names)]
    if len(there) <= _MOST_IN_LEGEND:
        from matplotlib.patches import Patch

        shades = palette() / 255
        handles = [
            Patch(facecolor=tuple(shades[number]), edgecolor="0.5", label=short(names[number])) for number in there
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    save_figure(figure, path)
