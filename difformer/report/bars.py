"""A number for each class, as a picture."""

from collections.abc import Mapping
from pathlib import Path

from difformer.report._figure import new_figure, save_figure, short

# Beyond these many, the lowest and highest are drawn.
_MOST = 60


def draw_bars(values: Mapping[str, float | None], path: Path, *, label: str, caption: str) -> None:
    """Draws a bar for each class, the largest first.

    Args:
        values: in [0, 1] by class; classes without a number are left out. Of more than 60, the 30 with the largest and
            the 30 with the smallest numbers are drawn.
        path: the PNG; replaced when it is there. A PDF of the same name is written beside it.
        label: of the axis.
        caption: what the numbers are of.

    Raises:
        ValueError: no class has a number.
        OSError: it cannot be written.
    """
    ranked = sorted(((name, value) for name, value in values.items() if value is not None), key=lambda one: -one[1])
    if not ranked:
        raise ValueError("no class has a number that could be drawn")
    if len(ranked) > _MOST:
        ranked = ranked[: _MOST // 2] + ranked[-_MOST // 2 :]
    figure = new_figure(6, 0.9 + 0.24 * len(ranked))
    axes = figure.subplots()
    axes.barh(range(len(ranked)), [100 * value for _, value in ranked], color="#4c6a92")
    for place, (_, value) in enumerate(ranked):
        axes.text(100 * value + 1, place, f"{100 * value:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(ranked)), [short(name) for name, _ in ranked])
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    axes.set_xlim(0, 110)
    axes.set_xlabel(f"{label}, %")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, caption=caption)
