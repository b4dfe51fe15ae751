"""The results of a quickstart as a table for readers, and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from difformer.verbs.quickstart.methods import METRICS, MethodResult
from difformer.verbs.quickstart.plan import Plan

HEADER = ("Method", "Accuracy", "Balanced accuracy", "F1", "Trained parameters", "Seconds")


def best_method(results: Sequence[MethodResult]) -> MethodResult:
    """The method with the highest mean accuracy."""
    return max(results, key=lambda result: result.spread("top1")[0])


def table_rows(plan: Plan, results: Sequence[MethodResult]) -> list[list[str]]:
    """A row for each method in the order of the plan, then the published ones; cells as `HEADER` names them."""
    rows = []
    for result in results:
        parameters = "-" if result.parameters is None else f"{result.parameters:,}"
        cells = []
        for average, deviation in map(result.spread, METRICS):
            cells.append(f"{average:.2f}" if deviation is None else f"{average:.2f} ± {deviation:.2f}")
        rows.append([plan.titles[result.method], *cells, parameters, f"{result.seconds:.0f}"])
    for row in plan.published:
        numbers = [f"{row[name]:.2f}" if name in row else "-" for name in METRICS]
        rows.append([str(row["name"]), *numbers, "-", "-"])
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown, with columns that line up in a console too."""
    table = [list(HEADER), *map(list, rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(HEADER))]
    table.insert(1, ["-" * width for width in widths])
    lines = []
    for first, *others in table:
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def as_json(plan: Plan, results: Sequence[MethodResult]) -> list[Mapping[str, Any]]:
    """The results with everything that the table rounds or leaves out."""
    return [{"title": plan.titles[result.method], **asdict(result)} for result in results]
