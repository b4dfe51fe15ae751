"""Training curves of several methods and seeds as a picture."""

from collections.abc import Mapping, Sequence
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


def draw_learning(runs: Mapping[str, Sequence[History]], path: Path) -> None:
    """Draws how methods learn as a PNG: a panel for each quantity that was recorded, a colour for each method.

    A thick line is the mean over a method's seeds, at the epochs that all of them have; thin ones are the seeds.

    Args:
        runs: histories by method, one a seed: records with `epoch` and, where they were measured, `train_loss`,
            `validation_loss`, `train_top1` and `validation_top1`, accuracies in [0, 1].
        path: the file; replaced when it is there.

    Raises:
        ValueError: nothing was recorded.
        OSError: it cannot be written.
    """
    from matplotlib import color_sequences

    recorded = {key for seeds in runs.values() for history in seeds for record in history for key in record}
    panels = [key for key in _PANELS if key in recorded]
    if not panels:
        raise ValueError(f"there is nothing to draw; records have one or more of {', '.join(_PANELS)}")
    legend_rows = -(-len(runs) // 4)
    figure = new_figure(max(6, 3.7 * len(panels)), 3.2 + 0.25 * legend_rows)
    colors = color_sequences["tab10"]
    lines: dict[str, Any] = {}
    for axes, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, (method, seeds) in enumerate(runs.items()):
            turn, color = divmod(place, len(colors))
            style = {"color": colors[color], "linestyle": _DASHES[turn % len(_DASHES)]}
            points = [{record["epoch"]: record[key] for record in history if key in record} for history in seeds]
            lines[method] = _draw_method(axes, points, style)
        axes.set(title=_PANELS[key], xlabel="Epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if key.endswith("top1"):
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
