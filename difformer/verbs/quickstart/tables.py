"""The results of a quickstart as a table: to look at, and for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from difformer.verbs.quickstart.methods import METRICS, MethodResult
from difformer.verbs.quickstart.plan import Plan

HEADER = ("Method", "Accuracy", "Balanced accuracy", "F1", "Trained parameters", "Seconds")


def best_method(results: Sequence[MethodResult]) -> MethodResult:
    """The one with the highest mean accuracy, for emphasis."""
    return max(results, key=lambda result: result.spread("top1")[0])


def table_rows(plan: Plan, results: Sequence[MethodResult]) -> list[list[str]]:
    """A row for each method in the order of the plan, then the published ones; cells as `HEADER` names them."""
    rows = []
    for result in results:
        parameters = "-" if result.parameters is None else f"{result.parameters:,}"
        rows.append([plan.titles[result.method], *_cells(result), parameters, f"{result.seconds:.0f}"])
    for row in plan.published:
        numbers = [f"{row[name]:.2f}" if name in row else "-" for name in METRICS]
        rows.append([str(row["name"]), *numbers, "-", "-"])
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown, with columns that line up in a console too."""
    lines = [list(HEADER), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def as_json(plan: Plan, results: Sequence[MethodResult]) -> list[Mapping[str, Any]]:
    """The results with everything that the table rounds or leaves out."""
    return [{"title": plan.titles[result.method], **asdict(result)} for result in results]


def _cells(result: MethodResult) -> list[str]:
    cells = []
    for metric in METRICS:
        average, deviation = result.spread(metric)
        cells.append(f"{average:.2f}" if deviation is None else f"{average:.2f} ± {deviation:.2f}")
    return cells
