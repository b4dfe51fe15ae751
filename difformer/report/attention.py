"""Which blocks and timesteps a fusion head attends to, as a picture."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from difformer.report._figure import block_label, new_figure, save_figure, write_numbers
from difformer.taps import FeatureKey

# Shares of types with few digits sum only approximately to 1.
_TOLERANCE = 0.01
_MARK = "#c2570c"


def draw_attention(shares: Mapping[FeatureKey, float], path: Path) -> None:
    """Draws how attention is spread over blocks and timesteps as a PNG.

    Rows are blocks in the order of the mapping, one for each pass of DifFeed; columns are timesteps from small to
    large. What was not read stays grey. The colour bar and the title say what each share would be if all were equal.

    Args:
        shares: of the attention by feature, at least 0 and 1 together: `DifFormerHead.attention_share`, averaged over
            images.
        path: the file; replaced when it is there.

    Raises:
        ValueError: no shares, or shares that are negative or do not sum to 1.
        OSError: it cannot be written.
    """
    values = {key: float(share) for key, share in shares.items()}
    total = sum(values.values())
    if not all(value >= 0 for value in values.values()) or not math.isclose(total, 1, abs_tol=_TOLERANCE):
        raise ValueError(f"shares must be at least 0 and sum to 1; got {list(values.values())}, which sum to {total:g}")
    blocks = list(dict.fromkeys((key.tap, key.round) for key in values))
    timesteps = sorted({key.t for key in values})
    table = np.ma.masked_all((len(blocks), len(timesteps)))
    for key, value in values.items():
        table[blocks.index((key.tap, key.round)), timesteps.index(key.t)] = value

    names = [block_label(FeatureKey(tap, 0, number)) for tap, number in blocks]
    figure = new_figure(max(3.2, 0.95 * len(timesteps)) + 2.2, max(1.6, 0.5 * len(blocks)) + 1.1)
    axes = figure.subplots()
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=table.max(), aspect="auto", interpolation="nearest")
    axes.set_facecolor("0.88")
    axes.set_xticks(range(len(timesteps)), [str(t) for t in timesteps])
    axes.set_yticks(range(len(names)), names)
    uniform = 1 / len(values)
    axes.set(xlabel="Timestep t", ylabel="Block")
    axes.set_title(f"Share of the attention (all equal: {uniform:.1%})", fontsize=11)
    axes.tick_params(length=0)
    write_numbers(axes, table, ".1%", middle=0.55 * table.max(), dark=True, fontsize=9)
    _mark_uniform(figure.colorbar(image, ax=axes, format=lambda share, _: f"{share:.0%}"), uniform)
    save_figure(figure, path)


def _mark_uniform(bar: Any, uniform: float) -> None:
    """A line across the colour bar where all shares would be equal."""
    bar.outline.set_visible(False)
    bar.ax.axhline(uniform, color=_MARK, linewidth=2)
    bar.ax.annotate(
        "equal", (0, uniform), xycoords=("axes fraction", "data"), xytext=(-4, 0), textcoords="offset points",
        ha="right", va="center", fontsize=8, color=_MARK,
    )  # fmt: skip
