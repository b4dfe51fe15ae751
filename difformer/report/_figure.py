"""What pictures have in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difformer.files import write_atomically
from difformer.taps import FeatureKey

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_NAME = 24


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches."""
    # Imported here because Matplotlib takes long to import.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path, *, caption: str | None = None) -> None:
    """Writes a PNG; replaces the file when it is there.

    Args:
        figure: what to write.
        path: the file.
        caption: a line below the picture. With one, the picture can stand alone, as in a paper, and a PDF of the same
            name is written beside the PNG.

    Raises:
        OSError: it cannot be written.
    """
    if caption is not None:
        from matplotlib import rc_context

        figure.text(0.5, -0.02, plain(caption), ha="center", va="top", fontsize=8, wrap=True)
        # Fonts of type 42, since journals refuse Matplotlib's usual type 3.
        with write_atomically(path.with_suffix(".pdf"), overwrite=True) as temporary, rc_context({"pdf.fonttype": 42}):
            # Without a date, so that equal results give equal files.
            figure.savefig(temporary, format="pdf", bbox_inches="tight", metadata={"CreationDate": None})
    with write_atomically(path, overwrite=True) as temporary:
        # Cropped, because a layout with square pictures inside leaves margins.
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")


def plain(text: str) -> str:
    """Text that Matplotlib writes as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def short(name: str) -> str:
    """A name as `plain`, of at most 24 characters, so that it leaves room for what it names."""
    return plain(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")


def block_label(key: FeatureKey) -> str:
    """The block of a feature, and its pass where that is not the first: `out04`, `out04 (pass 2)`."""
    return plain(key.tap) + (f" (pass {key.round + 1})" if key.round else "")


def write_numbers(axes: Any, cells: Any, form: str, *, middle: float, dark: bool, fontsize: float) -> None:
    """Writes the numbers of an image's cells into them, in black or white.

    Args:
        axes: with the image.
        cells: (rows, columns) masked array; nothing is written where it is masked.
        form: format specification of a number.
        middle: numbers above it are on one end of the colours, others on the other.
        dark: whether the colours of large numbers are the dark ones.
        fontsize: in points.
    """
    for (row, column), value in np.ndenumerate(cells):
        if not np.ma.is_masked(cells[row, column]):
            color = "white" if (value > middle) == dark else "black"
            axes.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=fontsize, color=color)
