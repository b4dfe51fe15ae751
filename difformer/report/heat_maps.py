"""Shares, or other numbers, by block and timestep as pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from difformer.report._figure import new_figure, plain, save_figure, write_numbers

# Beyond these many cells a row, numbers would overlap.
_MOST_WITH_NUMBERS = 40


def draw_heat_maps(
    shares: Mapping[str, Mapping[tuple[str, int], float]],
    path: Path,
    *,
    label: str,
    chosen: tuple[str, str, int] | None = None,
    percent: bool = True,
    caption: str | None = None,
) -> None:
    """Draws heat maps, blocks by timesteps, one below another, as a PNG; missing cells stay white.

    Args:
        shares: in [0, 1], by title, then by tap and timestep; taps in network order.
        path: the file; replaced when it is there.
        label: of the colours.
        chosen: title, tap and timestep of the cell that is framed.
        percent: write shares in %; otherwise numbers of any size are drawn as they are.
        caption: a line below; with one, a PDF of the same name is written beside the file.

    Raises:
        ValueError: there are none.
        OSError: it cannot be written.
    """
    from matplotlib.patches import Rectangle

    values = [share for table in shares.values() for share in table.values()]
    if not values:
        raise ValueError("there are no shares to draw")
    taps = list(dict.fromkeys(tap for table in shares.values() for tap, _ in table))
    timesteps = sorted({t for table in shares.values() for _, t in table})
    low, high = min(values), max(values)
    scale, form = (100, ".0f") if percent else (1, ".2g")
    height = len(shares) * (0.32 * len(timesteps) + 0.6) + 0.6
    # With many blocks, columns are just wide enough for their numbers, so that the picture fits a page.
    width = float(np.clip(0.52 * len(taps), 5, max(9, 0.24 * len(taps))))
    figure = new_figure(width + 1.6, height)
    panels = figure.subplots(len(shares), 1, squeeze=False, sharex=True)[:, 0]
    image: Any = None
    for axes, (title, table) in zip(panels, shares.items(), strict=True):
        cells = np.ma.masked_all((len(timesteps), len(taps)))
        for (tap, t), share in table.items():
            cells[timesteps.index(t), taps.index(tap)] = scale * share
        image = axes.imshow(cells, cmap="viridis", vmin=scale * low, vmax=scale * high, aspect="auto")
        axes.set_yticks(range(len(timesteps)), [str(t) for t in timesteps])
        axes.set_xticks(range(len(taps)), [plain(tap) for tap in taps], rotation=90)
        axes.set(ylabel="Timestep t", title=plain(title))
        axes.tick_params(length=0)
        if len(taps) <= _MOST_WITH_NUMBERS:
            write_numbers(axes, cells, form, middle=scale * (low + high) / 2, dark=False, fontsize=7)
        if chosen is not None and chosen[0] == title:
            corner = taps.index(chosen[1]) - 0.5, timesteps.index(chosen[2]) - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#ff3b1f", linewidth=2))
    panels[-1].set_xlabel("Block")
    figure.colorbar(image, ax=list(panels), label=label, shrink=0.6)
    save_figure(figure, path, caption=caption)
