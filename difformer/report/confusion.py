"""A confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from difformer.report._figure import new_figure, save_figure, short, write_numbers

# Beyond these many classes, shares would overlap in their cells, and names on the axes.
_MOST_WITH_SHARES = 20
_MOST_WITH_NAMES = 250


def draw_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix as a PNG, rows scaled to shares of the true class.

    Args:
        confusion: (C, C) counts; a row is a true class, a column a predicted one.
        class_names: C names.
        path: the file; replaced when it is there.

    Raises:
        OSError: it cannot be written.
    """
    classes = len(class_names)
    side = float(np.clip(0.45 * classes, 3, 9) if classes <= _MOST_WITH_SHARES else np.clip(0.13 * classes, 9, 30))
    figure = new_figure(side + 2, side + 1)
    axes = figure.subplots()
    counts = confusion.sum(axis=1, keepdims=True)
    # Rows without an image stay empty.
    shares = np.ma.masked_array(confusion / np.maximum(counts, 1), mask=np.broadcast_to(counts == 0, confusion.shape))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_facecolor("0.85")
    axes.set(xlabel="Predicted class", ylabel="True class")
    figure.colorbar(image, ax=axes, shrink=0.8, label="Share of the true class")
    if classes <= _MOST_WITH_NAMES:
        names = [short(name) for name in class_names]
        # The room for a name, in points.
        room = 72 * side / classes
        size = float(np.clip(0.7 * room, 4, 10))
        upright = max(map(len, names)) * size > room
        axes.set_xticks(range(classes), names, rotation=90 if upright else 0, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
    if classes <= _MOST_WITH_SHARES:
        shown = np.ma.masked_less_equal(shares, 0)
        write_numbers(axes, shown, ".0%", middle=0.5, dark=True, fontsize=8)
    save_figure(figure, path)
