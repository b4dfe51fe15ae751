"""Runs side by side: numbers, differences with their significance, curves; the body of `difformer compare`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from difformer.analysis import PairedDifference, bootstrap_mean, paired_bootstrap
from difformer.engine.runtime.result_folder import ResultFolder, write_json
from difformer.files import expand_user
from difformer.report.confusion import draw_confusion
from difformer.report.intervals import Estimate, draw_intervals
from difformer.report.learning import draw_learning
from difformer.report.page import Block, Picture, Row, Section, Table, write_page
from difformer.tasks import find_task
from difformer.tasks.registry import is_dense
from difformer.verbs.compare.dense import write_dense_comparison
from difformer.verbs.compare.measured import PAGE, RESULTS, Measured, Method, read_method

_CURVES, _ACCURACIES = "learning.png", "accuracies.png"
_LEVEL = 0.95
_RESAMPLES = 10_000


def compare_runs(
    sources: Sequence[str],
    output: str | Path,
    *,
    split: str = "test",
    seed: int = 0,
    overwrite: bool = False,
    trust: str | Sequence[str] = (),
) -> Path:
    """Writes a page that lays runs side by side, each compared with the first on the same images.

    Args:
        sources: folders of runs, of evaluations, or of runs that differ in their seed; what has not been measured is
            measured first.
        output: folder for page, pictures and numbers.
        split: of runs; evaluations have their own.
        seed: of the bootstrap.
        overwrite: replace what is there.
        trust: a package, or several, whose code may run, for runs with a head, data set or backbone of theirs.

    Returns:
        The page.

    Raises:
        ValueError: fewer than two, or not of the same images.
        FileNotFoundError, FileExistsError: a source is not there, or the output is.
    """
    if len(sources) < 2:
        raise ValueError("give at least two runs to compare")
    # There may have been more runs before, so any number of confusions.
    folder = ResultFolder(output, (PAGE, RESULTS, _CURVES, _ACCURACIES, "accuracies.pdf", "confusion-*.png"))
    folder.check(overwrite=overwrite)
    names = short_names(sources)
    methods = [read_method(source, split, name, trust) for source, name in zip(sources, names, strict=True)]
    runs = [run for method in methods for run in method.runs]
    check_same_images(runs)
    if (task := runs[0].task) is not None:
        dense = find_task(task["type"], task["arguments"], trust=[trust] if isinstance(trust, str) else trust or ())
        if not is_dense(dense):
            raise ValueError(f"the task {task['type']} keeps nothing of its images to compare")
        with folder.write() as temporary:
            lines = write_dense_comparison(temporary, dense, methods, seed=seed)
        print("\n".join([*lines, str(folder.path / PAGE)]), flush=True)
        return folder.path / PAGE
    first, *others = methods
    differences = [paired_bootstrap(m.correct, first.correct, resamples=_RESAMPLES, seed=seed) for m in others]
    with folder.write() as temporary:
        _write(temporary, methods, differences, seed)
    page = folder.path / PAGE
    for m, found in zip(others, differences, strict=True):
        print(f"{m.name} - {first.name}: {_difference(found)}, p = {found.p_value:.2g}")
    print(page, flush=True)
    return page


def short_names(sources: Sequence[str]) -> list[str]:
    """As little of the paths' ends as tells them apart.

    Raises:
        ValueError: the same twice.
    """
    parts = [expand_user(source).resolve().parts for source in sources]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"the runs must be different ones, got {', '.join(map(str, sources))}")


def check_same_images(runs: Sequence[Measured]) -> None:
    """Raises ValueError where runs were not measured on the same images, or have other classes or tasks."""
    first = runs[0]
    for other in runs[1:]:
        if (other.task or {}).get("type") != (first.task or {}).get("type"):
            raise ValueError(f"{first.name} and {other.name} are of different tasks, so they cannot be compared")
        if other.class_names != first.class_names:
            raise ValueError(f"{first.name} and {other.name} have different classes, so they cannot be compared")
        if other.digest != first.digest or not np.array_equal(other.ids, first.ids):
            raise ValueError(
                f"{first.name} and {other.name} were measured on different images, not all "
                f"were read, or one was measured by a version that told images apart by less; measure that one again "
                f"with difformer eval --overwrite"
            )


def _write(folder: Path, methods: Sequence[Method], differences: Sequence[PairedDifference], seed: int) -> None:
    values = [
        _numbers(method) | ({} if number == 0 else {"against_first": asdict(differences[number - 1])})
        for number, method in enumerate(methods)
    ]
    write_json(folder / RESULTS, values)
    estimates = {m.name: _estimate(m, seed) for m in methods}
    first = methods[0].runs[0]
    n = f"n = {len(first.ids):,} images of {first.split}; bars: {_LEVEL:.0%} intervals over images"
    seeds = "; small points: seeds" if any(len(m.runs) > 1 for m in methods) else ""
    draw_intervals(estimates, folder / _ACCURACIES, caption=f"{n}{seeds}.")
    picture = Picture(folder / _ACCURACIES, "Accuracy of each run with its interval")
    sections = [Section("Results", [_table(methods, list(estimates.values()), differences), picture])]
    histories = {m.name: [run.history for run in m.runs if run.history] for m in methods}
    histories = {name: runs for name, runs in histories.items() if runs}
    if histories:
        draw_learning(histories, folder / _CURVES)
        sections.append(Section("Training", [Picture(folder / _CURVES, "Loss and accuracy of the runs by epoch")]))
    blocks: list[Block] = []
    for number, m in enumerate(methods):
        path = folder / f"confusion-{number}.png"
        draw_confusion(np.sum([run.kept["confusion"] for run in m.runs], axis=0), m.runs[0].class_names, path)
        of_seeds = f", {len(m.runs)} seeds together" if len(m.runs) > 1 else ""
        blocks.append(Picture(path, f"Confusion matrix of {m.name}{of_seeds}", m.name))
    sections.append(Section("Confusion matrices", [Row(blocks)]))
    lead = f"{len(methods)} classifiers on {len(first.ids):,} images of {first.split}."
    write_page(folder / PAGE, "Comparison", sections, lead=lead)


def _numbers(method: Method) -> dict[str, Any]:
    """What the JSON file says of a method: of several seeds, the numbers of each."""
    first, *others = method.runs
    if not others:
        return {"name": method.name, "metrics": first.metrics, "trained_parameters": first.parameters}
    runs = [{"name": run.name, "metrics": run.metrics} for run in method.runs]
    return {"name": method.name, "runs": runs, "trained_parameters": first.parameters}


def _estimate(method: Method, seed: int) -> Estimate:
    """The accuracy with its interval over images; what other seeds change is not in it."""
    if len(method.runs) == 1:
        metrics = method.runs[0].metrics
        return Estimate(metrics["top1"], metrics["top1_interval"]["low"], metrics["top1_interval"]["high"])
    found = bootstrap_mean(method.correct, resamples=_RESAMPLES, seed=seed)
    return Estimate(found.mean, found.low, found.high, method.scores("top1"))


def _table(methods: Sequence[Method], estimates: Sequence[Estimate], differences: Sequence[PairedDifference]) -> Table:
    header = ("Run", "Accuracy", "95 % interval", "Balanced accuracy", "F1", "Trained parameters", "Difference", "p")
    rows = []
    for number, m in enumerate(methods):
        parameters = m.runs[0].parameters
        found = differences[number - 1] if number else None
        rows.append(
            [
                m.name if len(m.runs) == 1 else f"{m.name} ({len(m.runs)} seeds)",
                _mean_and_spread(m.scores("top1")),
                f"{100 * estimates[number].low:.1f} … {100 * estimates[number].high:.1f}",
                _mean_and_spread(m.scores("mean_per_class")),
                _mean_and_spread(m.scores("macro_f1")),
                "-" if parameters is None else f"{parameters:,}",
                "-" if found is None else _difference(found),
                "-" if found is None else f"{found.p_value:.2g}",
            ]
        )
    note = (
        f"In %; of several seeds, mean ± standard deviation. The difference of the accuracy from the first run's, with "
        f"its {_LEVEL:.0%} interval, and p are of a paired bootstrap over images ({_RESAMPLES:,} resamples): they say "
        "what other test images could change, and nothing of other seeds. p is not corrected for several comparisons."
    )
    return Table(header, rows, note=note)


def _mean_and_spread(scores: Sequence[float]) -> str:
    """Scores in [0, 1] in per cent: their mean and, of several, ± their standard deviation."""
    return f"{100 * mean(scores):.2f}" + (f" ± {100 * stdev(scores):.2f}" if len(scores) > 1 else "")


def _difference(found: PairedDifference) -> str:
    interval = found.difference
    return f"{100 * interval.mean:+.2f} ({100 * interval.low:+.1f} … {100 * interval.high:+.1f})"
