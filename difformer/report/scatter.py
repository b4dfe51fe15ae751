"""Images as points in the plane."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.report._figure import new_figure, save_figure, short

# More classes are coloured, but not named.
_MOST_NAMED = 20


def draw_scatter(points: NDArray[Any], labels: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Draws points coloured by class as a PNG.

    Args:
        points: (N, 2) finite.
        labels: (N,) in [0, number of classes).
        class_names: of the classes.
        path: the file; replaced when it is there.

    Raises:
        ValueError: points that are not (N, 2), or other than as many labels.
        OSError: it cannot be written.
    """
    from matplotlib import colormaps

    if points.ndim != 2 or points.shape[1] != 2 or len(labels) != len(points):
        raise ValueError(f"points must be (N, 2) with N labels, got {points.shape} and {labels.shape}")
    figure = new_figure(6.5, 5)
    axes = figure.subplots()
    colors = colormaps["tab20" if len(class_names) > 10 else "tab10"]
    for label, name in enumerate(class_names):
        rows = labels == label
        if rows.any():
            shown = short(name) if len(class_names) <= _MOST_NAMED else None
            axes.scatter(
                points[rows, 0],
                points[rows, 1],
                s=10,
                alpha=0.75,
                linewidths=0,
                color=colors(label % colors.N),
                label=shown,
            )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if len(class_names) <= _MOST_NAMED:
        figure.legend(loc="outside right upper", frameon=False, markerscale=2)
    save_figure(figure, path)
