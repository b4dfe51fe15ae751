"""The tables of a transfer suite."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from difformer.tables import write_rows


@dataclass(frozen=True)
class TransferRow:
    """What one head reached on one data set.

    Attributes:
        dataset, head: the pair.
        metric: the one that chose: top1 or mean_per_class.
        chosen: the chosen values by key; None before there is a choice.
        scores: by metric, the test accuracy of each finished seed, in [0, 1].
        planned: number of seeds.
    """

    dataset: str
    head: str
    metric: str
    chosen: Mapping[str, Any] | None = None
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    planned: int = 1

    def spread(self, metric: str) -> tuple[float | None, float | None]:
        """Mean and standard deviation over seeds (of a sample, so not of a single one), in %."""
        values = [100 * score for score in self.scores.get(metric, ())]
        return (mean(values) if values else None, stdev(values) if len(values) > 1 else None)


def csv_table(rows: Sequence[TransferRow], published: Mapping[str, Mapping[str, float]]) -> str:
    """One line for each data set and head."""
    out = io.StringIO()
    table: list[list[object]] = [
        ["dataset", "head", "metric", "mean", "std", "top1_mean", "top1_std", "mean_per_class_mean",
         "mean_per_class_std", "published_top1", "seeds", "seeds_planned", "chosen"]
    ]  # fmt: skip
    for row in rows:
        numbers = [
            "" if number is None else f"{number:.4f}"
            for metric in (row.metric, "top1", "mean_per_class")
            for number in row.spread(metric)
        ]
        beside = published.get(row.head, {}).get(row.dataset, "")
        done = len(row.scores.get(row.metric, ()))
        chosen = "" if row.chosen is None else json.dumps(dict(row.chosen))
        table.append([row.dataset, row.head, row.metric, *numbers, beside, done, row.planned, chosen])
    write_rows(out, table, end="\n")
    return out.getvalue()


def markdown_table(
    rows: Sequence[TransferRow],
    published: Mapping[str, Mapping[str, float]],
    *,
    source: str = "",
    holdout: float = 0.1,
    notes: Sequence[str] = (),
) -> str:
    """The same as text: accuracies by head and data set, the published ones beside them, and what was chosen.

    Args:
        rows: by data set and head.
        published: top-1 in % by row and data set.
        source: of the published numbers.
        holdout: fraction of the training images that choices were made on.
        notes: failures.
    """
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    heads = list(dict.fromkeys(row.head for row in rows))
    seeds = rows[0].planned if rows else 0
    by_pair = {(row.head, row.dataset): row for row in rows}
    lines = [
        "# Transfer",
        "",
        f"Test accuracy in %, mean ± standard deviation over {seeds} seed{'s' * (seeds != 1)}. Choices were made on "
        f"{holdout:.0%} of the training images, held out; the test images were measured once for each seed.",
        "",
        "## Top-1",
        "",
        *_header(["head", *datasets]),
    ]
    for head in heads:
        lines.append(_line([head, *(_cell(by_pair[head, name], "top1") for name in datasets)]))
        if head in published:
            lines.append(_published(f"{head}, published", published[head], datasets))
    lines += [_published(name, numbers, datasets) for name, numbers in published.items() if name not in heads]
    if source:
        lines += ["", f"Published, all top-1: {source}"]
    per_class = [name for name in datasets if any(r.dataset == name and r.metric != "top1" for r in rows)]
    if per_class:
        lines += ["", "## Mean per class", "", *_header(["head", *per_class])]
        lines += [_line([h, *(_cell(by_pair[h, name], "mean_per_class") for name in per_class)]) for h in heads]
        lines += [
            "",
            "The literature reports this metric for these data sets. Candidates were chosen by it on these data sets, "
            "and by top-1 on the others.",
        ]
    lines += ["", "## Chosen", "", *_header(["data set", "head", "chosen", "seeds"])]
    for row in rows:
        chosen = "-" if row.chosen is None else ", ".join(f"{key} {value}" for key, value in row.chosen.items())
        done = len(row.scores.get("top1", ()))
        lines.append(_line([row.dataset, row.head, chosen or "nothing to choose", f"{done} of {row.planned}"]))
    if notes:
        lines += ["", "## Failed", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _header(names: Sequence[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _published(name: str, numbers: Mapping[str, float], datasets: Sequence[str]) -> str:
    return _line([name, *(str(numbers.get(dataset, "-")) for dataset in datasets)])


def _cell(row: TransferRow, metric: str) -> str:
    average, deviation = row.spread(metric)
    if average is None:
        return "-"
    missing = "" if len(row.scores[metric]) == row.planned else f" ({len(row.scores[metric])} of {row.planned} seeds)"
    return f"{average:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}") + missing
