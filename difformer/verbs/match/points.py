"""Points to look for: a grid, or those that people write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer.config import as_positive_integer
from difformer.files import expand_user
from difformer.tables import read_rows

Points = Tensor | NDArray[Any] | Sequence[Sequence[float]]


def regular_grid(height: int, width: int, count: int) -> NDArray[np.float64]:
    """(P, 2) x, y of the centres of cells that are about square, in rows: `count` of them along the longer side."""
    longer = max(height, width)
    rows, columns = (max(1, round(as_positive_integer("grid", count) * side / longer)) for side in (height, width))
    y, x = ((np.arange(number) + 0.5) * side / number for number, side in ((rows, height), (columns, width)))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def checked_points(points: Points, height: int, width: int) -> NDArray[np.float64]:
    """Points as an array (P, 2) of x, y.

    Raises:
        ValueError: other shapes or values, none, or one outside the image.
    """
    try:
        values = np.asarray(points.cpu() if isinstance(points, Tensor) else points, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise ValueError(f"points must be (P, 2) numbers x, y, at least one point, got {points!r}")
    inside = (values >= 0).all(axis=1) & (values <= (width, height)).all(axis=1)
    if not inside.all():
        place = int(np.argmin(inside))
        raise ValueError(
            f"points must lie in the first image, with x in [0, {width}] and y in [0, {height}] (upright), got "
            f"{values[place].tolist()} as point {place + 1}"
        )
    return values


def parse_points(text: str) -> NDArray[np.float64]:
    """Points as people write them: `120,80 200,95.5`, or the path of a CSV file with columns x and y.

    Returns:
        (P, 2) x, y.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: it is neither, or the file has other columns or values that are no numbers.
    """
    of_file = text.lower().endswith(".csv")
    cells = _cells(expand_user(text)) if of_file else [word.split(",") for word in text.split()]
    try:
        points = np.asarray(cells, dtype=np.float64)
    except ValueError:
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(
            f"points must be numbers, as in --points '120,80 200,95.5' (x,y of each, in quotes), or in the columns x "
            f"and y of a .csv file; got {text!r}, which begins with {cells[:3]}"
        )
    return points


def _cells(path: Path) -> list[list[str]]:
    """The columns x and y of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = read_rows(file) or [[]]
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from error
    names = [name.strip().lower() for name in header]
    if not {"x", "y"} <= {*names}:
        raise ValueError(f"{path} must have columns x and y; its first line is {','.join(header)!r}")
    return [[dict(zip(names, row, strict=False)).get(name, "") for name in "xy"] for row in rows if any(row)]
