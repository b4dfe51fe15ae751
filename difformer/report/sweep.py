"""A sweep over blocks and timesteps as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from difformer.report._figure import new_figure, plain, save_figure
from difformer.report.heat_maps import draw_heat_maps


def draw_sweep(
    accuracies: Mapping[tuple[str, int, int], float],
    chosen: tuple[str, int, int],
    path: Path,
    *,
    criterion: str | None = None,
    percent: bool = True,
    caption: str | None = None,
) -> None:
    """Draws accuracies as heat maps, blocks by timesteps, one below another for each pooling.

    Args:
        accuracies: in [0, 1], by tap, timestep and pooling, taps in network order; or the criterion's numbers.
        chosen: which of them is framed.
        path: the file; replaced when it is there.
        criterion: name of another criterion.
        percent: whether the numbers are shares, which are shown in %.
        caption: a line below; with one, a PDF of the same name is written beside the file.

    Raises:
        ValueError: there are none.
        OSError: it cannot be written.
    """
    if not accuracies:
        raise ValueError("there are no accuracies to draw")
    by_pool = {
        f"Pool {pool}": {(tap, t): accuracy for (tap, t, side), accuracy in accuracies.items() if side == pool}
        for pool in sorted({pool for _, _, pool in accuracies})
    }
    tap, t, pool = chosen
    draw_heat_maps(
        by_pool,
        path,
        label=_label(criterion, percent),
        chosen=(f"Pool {pool}", tap, t),
        percent=percent,
        caption=caption,
    )


def _label(criterion: str | None, percent: bool) -> str:
    return plain(f"Validation {criterion or 'accuracy'}{', %' if percent else ''}")


def draw_pareto(
    points: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float, str]],
    path: Path,
    *,
    criterion: str | None = None,
    percent: bool = True,
    caption: str | None = None,
) -> None:
    """Draws accuracy over cost, with the Pareto front.

    Args:
        points: GFLOP and accuracy in [0, 1], or the criterion's number, of every probe.
        front: the same for the probes that no cheaper one beats, by increasing cost, each with a name.
        path: the file; replaced when it is there.
        criterion: name of another criterion.
        percent: whether the numbers are shares, which are shown in %.
        caption: a line below; with one, a PDF of the same name is written beside the file.

    Raises:
        OSError: it cannot be written.
    """
    figure = new_figure(6.5, 4)
    axes = figure.subplots()
    scale = 100 if percent else 1
    costs, accuracies = zip(*points, strict=True)
    axes.scatter(costs, [scale * accuracy for accuracy in accuracies], s=9, color="0.75")
    steps = [(cost, scale * accuracy) for cost, accuracy, _ in front]
    axes.step(*zip(*steps, strict=True), where="post", marker="o", markersize=4, color="#c2570c")
    for cost, accuracy, name in front:
        axes.annotate(
            plain(name), (cost, scale * accuracy), xytext=(4, -9), textcoords="offset points", fontsize=7, color="0.25"
        )
    axes.set(xlabel="GFLOP an image", ylabel=_label(criterion, percent))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, caption=caption)
