"""A sweep over blocks and timesteps as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from difformer._optional import require
from difformer.report._figure import new_figure, plain, save_figure

# Beyond these many cells a row, numbers would overlap.
_MOST_WITH_NUMBERS = 40


def draw_sweep(accuracies: Mapping[tuple[str, int, int], float], chosen: tuple[str, int, int], path: Path) -> None:
    """Draws accuracies as heat maps, blocks by timesteps, one below another for each pooling.

    Args:
        accuracies: in [0, 1], by tap, timestep and pooling, taps in network order.
        chosen: which of them is framed.
        path: the file; replaced when it is there.

    Raises:
        ValueError: there are none.
        OSError: it cannot be written.
    """
    if not accuracies:
        raise ValueError("there are no accuracies to draw")
    taps = list(dict.fromkeys(tap for tap, _, _ in accuracies))
    timesteps = sorted({t for _, t, _ in accuracies})
    pools = sorted({pool for _, _, pool in accuracies})
    low, high = min(accuracies.values()), max(accuracies.values())
    height = len(pools) * (0.32 * len(timesteps) + 0.6) + 0.6
    figure = new_figure(max(5, 0.52 * len(taps)) + 1.6, height, "drawing a sweep")
    panels = figure.subplots(len(pools), 1, squeeze=False, sharex=True)[:, 0]
    image: Any = None
    for axes, pool in zip(panels, pools, strict=True):
        table = np.ma.masked_all((len(timesteps), len(taps)))
        for (tap, t, side), accuracy in accuracies.items():
            if side == pool:
                table[timesteps.index(t), taps.index(tap)] = 100 * accuracy
        image = axes.imshow(table, cmap="viridis", vmin=100 * low, vmax=100 * high, aspect="auto")
        axes.set_yticks(range(len(timesteps)), [str(t) for t in timesteps])
        axes.set_xticks(range(len(taps)), [plain(tap) for tap in taps], rotation=90)
        axes.set(ylabel="Timestep t", title=f"Pool {pool}")
        axes.tick_params(length=0)
        if len(taps) <= _MOST_WITH_NUMBERS:
            _write_numbers(axes, table, 100 * (low + high) / 2)
        if pool == chosen[2]:
            _frame(axes, taps.index(chosen[0]), timesteps.index(chosen[1]))
    panels[-1].set_xlabel("Block")
    figure.colorbar(image, ax=list(panels), label="Validation accuracy, %", shrink=0.6)
    save_figure(figure, path)


def draw_pareto(points: Sequence[tuple[float, float]], front: Sequence[tuple[float, float, str]], path: Path) -> None:
    """Draws accuracy over cost, with the front of those that none cheaper beats.

    Args:
        points: GFLOP and accuracy in [0, 1] of every probe.
        front: the same of the front, from cheap to dear, with a name each.
        path: the file; replaced when it is there.

    Raises:
        OSError: it cannot be written.
    """
    figure = new_figure(6.5, 4, "drawing a front")
    axes = figure.subplots()
    axes.scatter(*zip(*[(cost, 100 * accuracy) for cost, accuracy in points], strict=True), s=9, color="0.75")
    steps = [(cost, 100 * accuracy) for cost, accuracy, _ in front]
    axes.step(*zip(*steps, strict=True), where="post", marker="o", markersize=4, color="#c2570c")
    for cost, accuracy, name in front:
        axes.annotate(
            plain(name), (cost, 100 * accuracy), xytext=(4, -9), textcoords="offset points", fontsize=7, color="0.25"
        )
    axes.set(xlabel="GFLOP an image", ylabel="Validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _write_numbers(axes: Any, table: Any, middle: float) -> None:
    for (row, column), value in np.ndenumerate(table):
        if not np.ma.is_masked(table[row, column]):
            color = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)


def _frame(axes: Any, column: int, row: int) -> None:
    rectangle = require("matplotlib.patches", "drawing a sweep", install="matplotlib").Rectangle
    axes.add_patch(rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#ff3b1f", linewidth=2))
