"""Landmarks on their images, and the curve of the errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer._optional import require
from difformer.data import Points
from difformer.report._figure import new_figure, save_figure
from difformer.tasks.keypoints.scores import Landmarks

# With more points, their names would hide the image.
_MOST_NAMES = 24
# Light and dark ones, which are seen on any image, as RGB.
_COLOURS = (
    (255, 80, 80), (80, 200, 255), (255, 210, 60), (120, 230, 110), (255, 140, 240), (255, 160, 70), (150, 140, 255),
    (90, 240, 220),
)  # fmt: skip


def marked(picture: Any, points: Tensor, names: Sequence[str]) -> Any:
    """A copy of an RGB picture with points (K, 2) on it, and their names where these are few.

    Args:
        picture: PIL image.
        points: x, y in pixels; 0.5 is the centre of the first one.
        names: K.
    """
    image = picture.convert("RGB")
    canvas = require("PIL.ImageDraw", "drawing points", install="pillow").Draw(image)
    font = require("PIL.ImageFont", "drawing points", install="pillow").load_default(max(10, min(image.size) // 30))
    radius = max(1.5, min(image.size) / 120)
    for number, ((x, y), name) in enumerate(zip(points.tolist(), names, strict=True)):
        # PIL counts from the centre of the first pixel.
        x, y, colour = x - 0.5, y - 0.5, _COLOURS[number % len(_COLOURS)]
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(0, 0, 0))
        if len(names) <= _MOST_NAMES:
            # To the left of the point where it would reach over the right edge.
            name = " ".join(name.split())
            left = x + 1.5 * radius + canvas.textlength(name, font) > image.width
            place = (x - 1.5 * radius, y) if left else (x + 1.5 * radius, y)
            edge = {"stroke_width": 1, "stroke_fill": (0, 0, 0), "anchor": "rm" if left else "lm"}
            canvas.text(place, name, fill=colour, font=font, **edge)
    return image


def draw_keypoints(path: Path, picture: Any, truth: Points, found: Landmarks, names: Sequence[str]) -> None:
    """Draws an image, its true points, those that were found, and lines from the ones to the others, side by side.

    Args:
        path: the PNG; replaced when it is there.
        picture: RGB PIL image.
        truth: of the image at its own size.
        found: in it.
        names: of the points.

    Raises:
        OSError: it cannot be written.
    """
    seen = truth.visible.cpu().numpy()
    true, points = truth.points.cpu().numpy()[seen], found.points.numpy()
    errors = np.linalg.norm(points[seen] - true, axis=1)
    height, width = truth.size
    figure = new_figure(13, 3.1 * height / width + 0.5)
    panels = figure.subplots(1, 4)
    mean = f" ({errors.mean():.1f} pixels)" if len(errors) else ""
    for axes, title in zip(panels, ("Image", "Truth", "Prediction", f"Errors{mean}"), strict=True):
        # The first pixel reaches from 0 to 1.
        axes.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
        axes.autoscale(False)
    colours = np.asarray([_COLOURS[number % len(_COLOURS)] for number in range(len(names))]) / 255
    panels[1].scatter(*true.T, s=12, c=colours[seen], edgecolors="black", linewidths=0.5)
    # What cannot be compared is hollow.
    panels[2].scatter(*points[seen].T, s=12, c=colours[seen], edgecolors="black", linewidths=0.5)
    panels[2].scatter(*points[~seen].T, s=12, facecolors="none", edgecolors=colours[~seen], linewidths=0.8)
    if len(errors):
        from matplotlib.collections import LineCollection

        lines = LineCollection(list(np.stack([true, points[seen]], axis=1)), cmap="plasma", linewidths=1.8)
        lines.set_array(errors)
        lines.set_clim(0, max(float(errors.max()), 1e-6))
        panels[3].add_collection(lines)
        panels[3].scatter(*true.T, s=6, c="white", edgecolors="black", linewidths=0.4)
        figure.colorbar(lines, ax=panels[3], label="pixels", shrink=0.8)
    save_figure(figure, path)


def draw_error_curve(nme: NDArray[np.float64], threshold: float, path: Path) -> None:
    """Draws the share of images whose error is at most each number, up to a threshold.

    Args:
        nme: (N,) relative errors; images without one, not a number, are left out.
        threshold: where failures begin, and the curve ends.
        path: the PNG; replaced when it is there. A PDF of the same name is written beside it.

    Raises:
        OSError: it cannot be written.
    """
    errors = np.sort(nme[~np.isnan(nme)])
    shares = 100 * np.arange(len(errors) + 1) / len(errors)
    figure = new_figure(5, 3.6)
    axes = figure.subplots()
    # An image is below the curve from its error on.
    axes.step(100 * np.concatenate([[0], errors]), shares, where="post", color="#4c6a92")
    failed = float(np.mean(errors > threshold))
    if failed < 1:
        axes.hlines(shares[-1] * (1 - failed), 100 * errors[errors <= threshold].max(), 100 * threshold, "#4c6a92")
    axes.set(xlim=(0, 100 * threshold), ylim=(0, 101), xlabel="Error relative to the length, %", ylabel="Images, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    beyond = f"above {100 * threshold:g} %: {100 * failed:.1f} %"
    save_figure(figure, path, caption=f"n = {len(errors):,} images; mean {100 * errors.mean():.2f} %, {beyond}.")
