"""Training curves of several methods and seeds as a picture."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from difformer.report._figure import new_figure, plain, save_figure

_PANELS = {
    "train_loss": "Training loss",
    "validation_loss": "Validation loss",
    "train_top1": "Training accuracy",
    "validation_top1": "Validation accuracy",
}
_DASHES = ("-", "--", ":", "-.")

History = Sequence[Mapping[str, Any]]


def draw_learning(
    runs: Mapping[str, Sequence[History]],
    path: Path,
    *,
    panels: Mapping[str, str] = _PANELS,
    shares: Collection[str] = ("train_top1", "validation_top1"),
) -> None:
    """Draws how methods learn as a PNG: a panel for each quantity that was recorded, a colour for each method.

    A thick line is the mean over a method's seeds, at the epochs that all of them have; thin ones are the seeds.

    Args:
        runs: histories by method, one a seed: records with `epoch` and what was measured.
        path: the file; replaced when it is there.
        panels: the titles of what is drawn, by its name in the records; what none of them has is left out.
        shares: names of numbers in [0, 1] that are written in %.

    Raises:
        ValueError: nothing was recorded.
        OSError: it cannot be written.
    """
    from matplotlib import color_sequences

    recorded = {key for seeds in runs.values() for history in seeds for record in history for key in record}
    there = [key for key in panels if key in recorded]
    if not there:
        raise ValueError(f"there is nothing to draw; records have one or more of {', '.join(panels)}")
    legend_rows = -(-len(runs) // 4)
    figure = new_figure(max(6, 3.7 * len(there)), 3.2 + 0.25 * legend_rows)
    colors = color_sequences["tab10"]
    lines: dict[str, Any] = {}
    for axes, key in zip(figure.subplots(1, len(there), squeeze=False)[0], there, strict=True):
        for place, (method, seeds) in enumerate(runs.items()):
            turn, color = divmod(place, len(colors))
            style = {"color": colors[color], "linestyle": _DASHES[turn % len(_DASHES)]}
            points = [{record["epoch"]: record[key] for record in history if key in record} for history in seeds]
            lines[method] = _draw_method(axes, points, style)
        axes.set(title=panels[key], xlabel="Epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if key in shares:
            axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    names = [plain(method) for method in lines]
    figure.legend(list(lines.values()), names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    save_figure(figure, path)


def _draw_method(axes: Any, seeds: Sequence[Mapping[int, float]], style: Mapping[str, Any]) -> Any:
    """Draws values by epoch; returns the line of their mean."""
    if len(seeds) > 1:
        for points in seeds:
            axes.plot(list(points), list(points.values()), **style, linewidth=0.8, alpha=0.35)
    shared = [epoch for epoch in (seeds[0] if seeds else ()) if all(epoch in points for points in seeds)]
    means = [sum(points[epoch] for points in seeds) / len(seeds) for epoch in shared]
    (line,) = axes.plot(shared, means, **style, linewidth=2, marker="." if len(shared) < 25 else None)
    return line
