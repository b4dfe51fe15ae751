"""A number of several methods with their intervals, as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difformer.report._figure import new_figure, save_figure, short


@dataclass(frozen=True)
class Estimate:
    """A number and how certain it is.

    Attributes:
        value: the number.
        low, high: ends of its interval.
        seeds: the numbers whose mean it is, where there are several.
    """

    value: float
    low: float
    high: float
    seeds: Sequence[float] = ()


def draw_intervals(
    estimates: Mapping[str, Estimate], path: Path, *, caption: str, label: str = "Accuracy", percent: bool = True
) -> None:
    """Draws a point with its interval for each method, one below another, and small points for its seeds.

    Args:
        estimates: by method, at least one.
        path: the PNG; replaced when it is there. A PDF of the same name is written beside it.
        caption: what the numbers are of.
        label: of the axis.
        percent: whether the numbers are shares in [0, 1], which are drawn in %.

    Raises:
        ValueError: there are none.
        OSError: it cannot be written.
    """
    if not estimates:
        raise ValueError("there are no methods to draw")
    scale = 100 if percent else 1
    figure = new_figure(6, 0.9 + 0.38 * len(estimates))
    axes = figure.subplots()
    for place, one in enumerate(estimates.values()):
        axes.plot(
            [scale * one.low, scale * one.high], [place, place], color="#4c6a92", linewidth=2, solid_capstyle="butt"
        )
        axes.plot([scale * value for value in one.seeds], [place] * len(one.seeds), ".", color="0.55", markersize=5)
        axes.plot([scale * one.value], [place], "o", color="#c2570c", markersize=6)
    axes.set_yticks(range(len(estimates)), [short(name) for name in estimates])
    # The first method at the top.
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.set_xlabel(f"{label}, %" if percent else label)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, caption=caption)
