"""Corresponding points of two images, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from difformer.report._figure import new_figure, save_figure, short

# Both images are drawn with a longer side of 1, and apart by the gap.
_GAP = 0.05
_INCHES = 5.0
# Of the longer side of an image in the files, in pixels.
_LONGEST = 1000
# With more points than this, marks and numbers are smaller.
_MANY = 30
_RIGHT, _WRONG = "#1a9850", "#d73027"

XY = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Truth:
    """Where points are in the second image, to be drawn beside those that were found.

    Attributes:
        points: (P, 2) x, y.
        right: (P,) bool, whether what was found is near enough.
    """

    points: XY
    right: NDArray[np.bool_]


def draw_matches(
    images: tuple[Image.Image, Image.Image],
    points: tuple[XY, XY],
    path: Path,
    *,
    names: tuple[str, str] = ("", ""),
    numbers: Sequence[int] | None = None,
    truth: Truth | None = None,
    caption: str | None = None,
) -> None:
    """Draws two images side by side, with numbered points in both and thin lines between them.

    Each point has a colour of its own. Where the truth is known, right points are green circles instead, and wrong ones
    red crosses with a thick line to where they should be.

    Args:
        images: upright RGB pictures of any size.
        points: (P, 2) x, y in pixels of each image, where (0.5, 0.5) is the centre of the first pixel.
        path: the PNG; replaced when it is there.
        names: of the images, above them.
        numbers: of the points; from 1 on when None.
        truth: where the points of the second image are.
        caption: a line below; with one, a PDF of the same name is written beside the file.

    Raises:
        ValueError: not as many points in both images.
        OSError: it cannot be written.
    """
    if points[0].shape != points[1].shape or points[0].shape[1:] != (2,):
        raise ValueError(f"points of both images must be (P, 2), got {points[0].shape} and {points[1].shape}")
    count = len(points[0])
    shown = list(range(1, count + 1)) if numbers is None else list(numbers)
    places = _places(images)
    figure = new_figure(_INCHES * places[1][2], _INCHES * max(place[3] for place in places) + 0.3)
    axes = figure.subplots()
    for image, (left, top, right, bottom), name in zip(images, places, names, strict=True):
        small = image.copy()
        small.thumbnail((_LONGEST, _LONGEST))
        axes.imshow(np.asarray(small), extent=(left, right, bottom, top))
        axes.text((left + right) / 2, top - 0.01, short(name), ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(0, places[1][2]), ylim=(max(place[3] for place in places), min(place[1] for place in places)))
    axes.set_axis_off()
    start, end = (_placed(xy, image, place) for xy, image, place in zip(points, images, places, strict=True))
    colors = _colors(count) if truth is None else [_RIGHT if right else _WRONG for right in truth.right]
    if truth is not None:
        _draw_errors(axes, end, _placed(truth.points, images[1], places[1]), truth.right)
    marks = ["o"] * count if truth is None else ["o" if right else "X" for right in truth.right]
    for place in range(count):
        _draw_pair(axes, start[place], end[place], shown[place], colors[place], marks[place], small=count > _MANY)
    save_figure(figure, path, caption=caption)


def _places(images: tuple[Image.Image, Image.Image]) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each image, with the middles on one line."""
    places, left = [], 0.0
    for image in images:
        width, height = (side / max(image.size) for side in image.size)
        places.append((left, -height / 2, left + width, height / 2))
        left += width + _GAP
    top = min(place[1] for place in places)
    return [(left, upper - top, right, lower - top) for left, upper, right, lower in places]


def _placed(points: XY, image: Image.Image, place: tuple[float, float, float, float]) -> XY:
    return points / max(image.size) + np.asarray(place[:2])


def _colors(count: int) -> list[Any]:
    """As different as they can be, and the same again for the same number of points."""
    from matplotlib import colormaps

    return [colormaps["turbo"](0.05 + 0.9 * place / max(1, count - 1)) for place in range(count)]


def _draw_pair(axes: Any, start: XY, end: XY, number: int, color: Any, mark: str, *, small: bool) -> None:
    from matplotlib.patheffects import withStroke

    axes.plot(*zip(start, end, strict=True), color=color, linewidth=0.6, alpha=0.6)
    for x, y in (start, end):
        style = {"markersize": 4 if small else 6, "markeredgecolor": "white", "markeredgewidth": 0.7}
        axes.plot(x, y, mark, color=color, clip_on=False, **style)
        axes.annotate(
            f"{number}", (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6 if small else 8,
            color="black", path_effects=[withStroke(linewidth=1.8, foreground="white")], annotation_clip=False,
        )  # fmt: skip


def _draw_errors(axes: Any, found: XY, truth: XY, right: NDArray[np.bool_]) -> None:
    """A line from each wrong point to where it should be."""
    for start, end in zip(found[~right], truth[~right], strict=True):
        axes.plot(*zip(start, end, strict=True), color=_WRONG, linewidth=1.8)
        axes.plot(*end, "o", color="white", markersize=5, markeredgecolor=_WRONG, markeredgewidth=1.2)
