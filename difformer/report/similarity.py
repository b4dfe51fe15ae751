"""How alike representations are, as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.report._figure import new_figure, plain, save_figure

_COLUMNS = 5


def draw_similarities(
    matrices: Mapping[str, NDArray[np.float64]],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    *,
    titles: tuple[str, str] = ("", ""),
    caption: str | None = None,
) -> None:
    """Draws matrices of similarities side by side, the first row at the bottom, as the papers do.

    Args:
        matrices: (R, C) by title, in [0, 1], except for estimates a little below; what is not finite stays grey.
        rows, columns: names.
        path: the file; replaced when it is there.
        titles: of all rows and of all columns.
        caption: a line below; with one, a PDF of the same name is written beside the file.

    Raises:
        ValueError: there are none, or they do not fit the names.
        OSError: it cannot be written.
    """
    if not matrices:
        raise ValueError("there are no similarities to draw")
    shape = len(rows), len(columns)
    for title, matrix in matrices.items():
        if matrix.shape != shape:
            raise ValueError(f"the similarities {title} must be of shape {shape}, got {matrix.shape}")
    across = min(_COLUMNS, len(matrices))
    down = -(-len(matrices) // across)
    width, height = (float(np.clip(0.16 * count, 1.8, 8)) for count in (shape[1], shape[0]))
    figure = new_figure(across * (width + 0.6) + 1, down * (height + 0.7))
    panels = figure.subplots(down, across, squeeze=False)
    image: Any = None
    for number, axes in enumerate(panels.flat):
        if number >= len(matrices):
            axes.set_axis_off()
            continue
        title, matrix = list(matrices.items())[number]
        image = axes.imshow(np.ma.masked_invalid(matrix), cmap="magma", vmin=0, vmax=1, origin="lower")
        axes.set_facecolor("0.85")
        axes.set_title(plain(title), fontsize=9)
        _name(axes.set_xticks, columns, width, rotation=90)
        _name(axes.set_yticks, rows, height, rotation=0)
        axes.tick_params(length=0)
    for write, title in zip((figure.supylabel, figure.supxlabel), titles, strict=True):
        if title:
            write(plain(title), fontsize=9)
    figure.colorbar(image, ax=panels.ravel().tolist(), label="CKA", shrink=0.7)
    save_figure(figure, path, caption=caption)


def _name(set_ticks: Any, names: Sequence[str], inches: float, rotation: int) -> None:
    """As many of the names as there is room for."""
    step = max(1, round(len(names) * 0.14 / inches))
    places = range(0, len(names), step)
    set_ticks(list(places), [plain(names[place]) for place in places], rotation=rotation, fontsize=7)
