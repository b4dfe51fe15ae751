"""Runs of a task with masks, boxes or points side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from difformer.analysis import Interval, Metric, PairedDifference
from difformer.engine.runtime.result_folder import write_json
from difformer.report.intervals import Estimate, draw_intervals
from difformer.report.learning import draw_learning
from difformer.report.page import Picture, Section, Table, write_page
from difformer.tasks import DenseTask
from difformer.tasks.dense import difference_of, interval_of
from difformer.verbs.compare.measured import PAGE, RESULTS, Method

_RESAMPLES = 2000
# Of the tasks' intervals.
_LEVEL = 0.95


def write_dense_comparison(
    folder: Path,
    task: DenseTask,
    methods: Sequence[Method],
    *,
    seed: int,
    page: str = PAGE,
    title: str = "Comparison",
    lead: str = "",
    sections: Sequence[Section] = (),
) -> list[str]:
    """Writes page, pictures and numbers of methods that were measured on the same images.

    Args:
        folder: for them.
        task: of all methods.
        methods: each is compared with the first.
        seed: of the bootstrap.
        page, title: name of the page's file, and its heading.
        lead: sentences below the heading, before how many runs and images there are.
        sections: further ones, at the end.

    Returns:
        A line for each method.
    """
    name, metric = next(iter(task.metrics.items()))
    options: dict[str, Any] = {"resamples": _RESAMPLES, "seed": seed}
    intervals = [interval_of(task, _kept(method), **options) for method in methods]
    first, *others = methods
    differences = [difference_of(task, _kept(method), _kept(first), **options) for method in others]
    against = [None, *differences]
    values = [
        {
            "name": method.name,
            "runs": [{"name": run.name, "metrics": run.metrics} for run in method.runs],
            "trained_parameters": method.runs[0].parameters,
            "interval": None if interval is None else asdict(interval),
            "against_first": None if found is None else asdict(found),
        }
        for method, interval, found in zip(methods, intervals, against, strict=True)
    ]
    write_json(folder / RESULTS, values)
    estimates = {
        method.name: _estimate(method.scores(name), interval)
        for method, interval in zip(methods, intervals, strict=True)
    }
    n = f"{len(first.runs[0].ids):,} images of {first.runs[0].split}"
    measure = metric.title or name
    caption = f"n = {n}; bars: {_LEVEL:.0%} intervals over images."
    draw_intervals(estimates, folder / "accuracies.png", caption=caption, label=measure, percent=metric.share)
    picture = Picture(folder / "accuracies.png", f"{measure} of each run with its interval")
    shown = [Section("Results", [_table(task.metrics, methods, intervals, against), picture])]
    histories = {m.name: [run.history for run in m.runs if run.history] for m in methods}
    if histories := {one: runs for one, runs in histories.items() if runs}:
        panels = {"train_loss": "Training loss", f"validation_{name}": f"Validation {measure}"}
        shares = [f"validation_{name}"] if metric.share else []
        draw_learning(histories, folder / "learning.png", panels=panels, shares=shares)
        shown.append(Section("Training", [Picture(folder / "learning.png", f"Loss and {measure} by epoch")]))
    counted = f"{len(methods)} methods on {n}."
    write_page(folder / page, title, [*shown, *sections], lead=f"{lead} {counted}".strip())
    return [
        f"{method.name}: {_mean_and_spread(metric, method.scores(name))}"
        + ("" if found is None else f"; less {first.name}: {_difference(metric, found)}, p = {found.p_value:.2g}")
        for method, found in zip(methods, against, strict=True)
    ]


def _measured_by_all(name: str, methods: Sequence[Method]) -> bool:
    return all(run.metrics.get(name) is not None for method in methods for run in method.runs)


def _estimate(scores: Sequence[float], interval: Interval | None) -> Estimate:
    value = mean(scores)
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    return Estimate(value, low, high, scores if len(scores) > 1 else ())


def _kept(method: Method) -> list[Mapping[str, Any]]:
    return [run.kept for run in method.runs]


def _table(
    metrics: Mapping[str, Metric],
    methods: Sequence[Method],
    intervals: Sequence[Interval | None],
    differences: Sequence[PairedDifference | None],
) -> Table:
    # The first is what intervals and differences are of.
    first_name, first = next(iter(metrics.items()))
    shown = {name: one for name, one in metrics.items() if name == first_name or _measured_by_all(name, methods)}
    titles = [metric.title or name for name, metric in shown.items()]
    header = ("Run", titles[0], "95 % interval", *titles[1:], "Trained parameters", "Difference", "p")
    rows = []
    for method, interval, found in zip(methods, intervals, differences, strict=True):
        own, *more = (_mean_and_spread(metric, method.scores(name)) for name, metric in shown.items())
        parameters = method.runs[0].parameters
        rows.append(
            [
                method.name if len(method.runs) == 1 else f"{method.name} ({len(method.runs)} seeds)",
                own,
                "-" if interval is None else f"{first.text(interval.low)} … {first.text(interval.high)}",
                *more,
                "-" if parameters is None else f"{parameters:,}",
                "-" if found is None else _difference(first, found),
                "-" if found is None else f"{found.p_value:.2g}",
            ]
        )
    note = (
        "Of several seeds, mean ± standard deviation. The difference is that of the "
        f"{titles[0]} from the first run's, with its 95 % interval, of a paired bootstrap over images "
        f"({_RESAMPLES:,} resamples): it and p say what other test images could change, and nothing of other seeds. p "
        "is not corrected for several comparisons."
    )
    return Table(header, rows, note=note)


def _mean_and_spread(metric: Metric, scores: Sequence[float]) -> str:
    spread = f" ± {metric.text(stdev(scores))}" if len(scores) > 1 else ""
    return f"{metric.text(mean(scores))}{spread}"


def _difference(metric: Metric, found: PairedDifference) -> str:
    interval = found.difference
    if metric.share:
        return f"{100 * interval.mean:+.2f} ({100 * interval.low:+.2f} … {100 * interval.high:+.2f})"
    return f"{interval.mean:+.4g} ({interval.low:+.4g} … {interval.high:+.4g})"
