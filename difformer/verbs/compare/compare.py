"""Runs side by side: numbers, differences with their significance, curves; the body of `difformer compare`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from difformer.analysis import PairedDifference, paired_bootstrap
from difformer.engine.runtime.result_folder import ResultFolder, write_json
from difformer.files import expand_user
from difformer.report.confusion import draw_confusion
from difformer.report.learning import draw_learning
from difformer.report.page import Block, Picture, Row, Section, Table, write_page
from difformer.verbs.compare.measured import Measured, read_measured

PAGE = "compare.html"
_RESULTS, _CURVES = "compare.json", "learning.png"
_LEVEL = 0.95
_RESAMPLES = 10_000


def compare_runs(
    sources: Sequence[str],
    output: str | Path,
    *,
    split: str = "test",
    seed: int = 0,
    overwrite: bool = False,
    trust: str | None = None,
) -> Path:
    """Writes a page that lays runs side by side, each compared with the first on the same images.

    Args:
        sources: folders of runs, or of evaluations; what has not been measured is measured first.
        output: folder for page, pictures and numbers.
        split: of runs; evaluations have their own.
        seed: of the bootstrap.
        overwrite: replace what is there.
        trust: a package whose code may run, for runs with a head, data set or backbone of that package.

    Returns:
        The page.

    Raises:
        ValueError: fewer than two, or not of the same images.
        FileNotFoundError, FileExistsError: a source is not there, or the output is.
    """
    if len(sources) < 2:
        raise ValueError("give at least two runs to compare")
    # There may have been more runs before, so any number of confusions.
    folder = ResultFolder(output, (PAGE, _RESULTS, _CURVES, "confusion-*.png"))
    folder.check(overwrite=overwrite)
    names = short_names(sources)
    measured = [read_measured(source, split, name, trust) for source, name in zip(sources, names, strict=True)]
    _check_same_images(measured)
    first, *others = measured
    differences = [paired_bootstrap(m.correct, first.correct, resamples=_RESAMPLES, seed=seed) for m in others]
    with folder.write() as temporary:
        _write(temporary, measured, differences)
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


def _check_same_images(measured: Sequence[Measured]) -> None:
    first = measured[0]
    for other in measured[1:]:
        if other.class_names != first.class_names:
            raise ValueError(f"{first.name} and {other.name} have different classes, so they cannot be compared")
        if other.digest != first.digest or not np.array_equal(other.ids, first.ids):
            raise ValueError(
                f"{first.name} and {other.name} were measured on different images, not all "
                f"were read, or one was measured by a version that told images apart by less; measure that one again "
                f"with difformer eval --overwrite"
            )


def _write(folder: Path, measured: Sequence[Measured], differences: Sequence[PairedDifference]) -> None:
    values = [
        {"name": m.name, "metrics": m.metrics, "trained_parameters": m.parameters}
        | ({} if number == 0 else {"against_first": asdict(differences[number - 1])})
        for number, m in enumerate(measured)
    ]
    write_json(folder / _RESULTS, values)
    sections = [Section("Results", [_table(measured, differences)])]
    runs = {m.name: [m.history] for m in measured if m.history}
    if runs:
        draw_learning(runs, folder / _CURVES)
        sections.append(Section("Training", [Picture(folder / _CURVES, "Loss and accuracy of the runs by epoch")]))
    blocks: list[Block] = []
    for number, m in enumerate(measured):
        path = folder / f"confusion-{number}.png"
        draw_confusion(m.confusion, m.class_names, path)
        blocks.append(Picture(path, f"Confusion matrix of {m.name}", m.name))
    sections.append(Section("What is taken for what", [Row(blocks)]))
    lead = f"{len(measured)} classifiers on {len(measured[0].ids):,} images of {measured[0].split}."
    write_page(folder / PAGE, "Comparison", sections, lead=lead)


def _table(measured: Sequence[Measured], differences: Sequence[PairedDifference]) -> Table:
    header = ("Run", "Accuracy", "95 % interval", "Balanced accuracy", "F1", "Trained parameters", "Difference", "p")
    rows = []
    for number, m in enumerate(measured):
        interval = m.metrics["top1_interval"]
        found = differences[number - 1] if number else None
        rows.append(
            [
                m.name,
                f"{100 * m.metrics['top1']:.2f}",
                f"{100 * interval['low']:.1f} … {100 * interval['high']:.1f}",
                f"{100 * m.metrics['mean_per_class']:.2f}",
                f"{100 * m.metrics['macro_f1']:.2f}",
                "-" if m.parameters is None else f"{m.parameters:,}",
                "-" if found is None else _difference(found),
                "-" if found is None else f"{found.p_value:.2g}",
            ]
        )
    note = (
        f"In %. The difference of the accuracy from the first run's, with its {_LEVEL:.0%} interval, and p are of a "
        f"paired bootstrap over images ({_RESAMPLES:,} resamples): they say what other test images could change, and "
        "nothing of other seeds. p is not corrected for several comparisons."
    )
    return Table(header, rows, note=note)


def _difference(found: PairedDifference) -> str:
    interval = found.difference
    return f"{100 * interval.mean:+.2f} ({100 * interval.low:+.1f} … {100 * interval.high:+.1f})"
