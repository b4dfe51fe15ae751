"""What is found in an image, what is kept of it, and the length that its errors are divided by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis.keypoints import box_lengths, image_errors, point_distances, point_errors
from difformer.config import check_choice
from difformer.data import Points
from difformer.registry import did_you_mean

# Of an image, of the box of its object, or between points: names of the first, and of the second.
Length = str | tuple[tuple[str, ...], tuple[str, ...]]

_SIDES = {"box": "longer", "box_sqrt_area": "sqrt_area", "box_diagonal": "diagonal"}
LENGTHS = ("image", *_SIDES)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The points of an image, at the image's own size.

    Attributes:
        points: (K, 2) float32 x, y in pixels; x = 0.5 is the centre of the first pixel. A point may lie outside where
            the input showed more than the image.
        confidence: (K,) float32, the height of each heat map: about 1 where a point is clear and 0 where there is
            none. It is no probability.
    """

    points: Tensor
    confidence: Tensor


@dataclass(frozen=True, eq=False)
class KeypointScore:
    """What an evaluation keeps of an image, in pixels of the image at its own size.

    Attributes:
        predicted: (K, 2) float32 x, y.
        confidence: (K,) float32.
        true: (K, 2) float32, of no meaning where a point is not visible.
        visible: (K,) bool.
        length: that errors are divided by; not a number where it is not known.
    """

    predicted: NDArray[np.float32]
    confidence: NDArray[np.float32]
    true: NDArray[np.float32]
    visible: NDArray[np.bool_]
    length: float

    @property
    def errors(self) -> NDArray[np.float64]:
        """(K,) distances in pixels; not a number where a point is not visible."""
        found: NDArray[np.float64] = point_errors(self.predicted[None], self.true[None], self.visible[None])[0]
        return found

    @property
    def nme(self) -> float:
        """The mean error of the visible points relative to the length; not a number without one of both."""
        return float(image_errors(self.errors[None], np.asarray([self.length]))[0])


def as_length(value: Any) -> Length:
    """What errors are divided by, from what a recipe has.

    Raises:
        ValueError: it is neither one of `LENGTHS`, nor two points or two lists of points.
    """
    if isinstance(value, str):
        check_choice("normalize", value, LENGTHS)
        return value
    ends = value if isinstance(value, list | tuple) else ()
    sides = [one if isinstance(one, list | tuple) else [one] for one in ends]
    # YAML has the names of points such as 60 as numbers.
    fits = all(isinstance(name, str | int) and not isinstance(name, bool) for side in sides for name in side)
    if len(sides) != 2 or not all(sides) or not fits:
        raise ValueError(
            f"normalize must be one of {', '.join(LENGTHS)}, or two points such as [left_eye, right_eye], or two lists "
            f"of points whose centres are meant; got {value!r}"
        )
    first, second = (tuple(map(str, side)) for side in sides)
    if set(first) == set(second):
        raise ValueError(f"normalize must name two different places, got {value!r}")
    return first, second


def check_length(length: Length, names: Sequence[str], example: Points | None) -> None:
    """Raises ValueError where a data set lacks what a length needs.

    Args:
        length: from `as_length`.
        names: of the data set's points.
        example: of its targets; None where there is none.
    """
    for name in () if isinstance(length, str) else (*length[0], *length[1]):
        if name not in names:
            raise ValueError(f"normalize names {name!r}, which is no point; {did_you_mean(name, names)}")
    if length in _SIDES and example is not None and example.box is None:
        raise ValueError(
            f"normalize {length} needs the boxes of objects, which are read with data.box_scale only; set it, or "
            "choose normalize: image, or two points"
        )


def length_of(length: Length, target: Points, names: Sequence[str]) -> float:
    """The length of one image.

    Args:
        length: from `as_length`.
        target: of the image at its own size.
        names: of its points.

    Returns:
        Pixels, above 0; not a number where a point that it needs is not visible, two lie at one place, or the box has
        no extent.

    Raises:
        ValueError: there is no box.
    """
    if length == "image":
        return float(np.hypot(*target.size))
    if isinstance(length, str):
        check_length(length, names, target)
        side = float(box_lengths(np.asarray([target.box]), _SIDES[length])[0])  # type: ignore[arg-type]
        return side if side > 0 else float("nan")
    places = {name: number for number, name in enumerate(names)}
    first, second = ([places[name] for name in side] for side in length)
    found = float(point_distances(target.points[None].cpu(), target.visible[None].cpu(), first, second)[0])
    return found if found > 0 else float("nan")
