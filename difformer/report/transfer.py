"""The tables of a transfer suite."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from difformer.analysis import Metric
from difformer.tables import write_rows


@dataclass(frozen=True)
class TransferRow:
    """What one head reached on one data set.

    Attributes:
        dataset, head: the pair.
        metric: the one that chose, such as top1 or mean_per_class.
        chosen: the chosen values by key; None before there is a choice.
        scores: by metric, the number of each finished seed on the test images.
        planned: number of seeds.
    """

    dataset: str
    head: str
    metric: str
    chosen: Mapping[str, Any] | None = None
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    planned: int = 1

    def spread(self, metric: str, *, share: bool = True) -> tuple[float | None, float | None]:
        """Mean and standard deviation over seeds (of a sample, so not of a single one); of shares in %."""
        values = [(100 if share else 1) * score for score in self.scores.get(metric, ())]
        return (mean(values) if values else None, stdev(values) if len(values) > 1 else None)


def csv_table(
    rows: Sequence[TransferRow], published: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Metric]
) -> str:
    """One line for each data set and head.

    Args:
        rows: by data set and head.
        published: the first metric in % by row and data set.
        metrics: that are shown.
    """
    first = next(iter(metrics))
    out = io.StringIO()
    spreads = [f"{name}_{part}" for name in metrics for part in ("mean", "std")]
    table: list[list[object]] = [
        ["dataset", "head", "metric", "mean", "std", *spreads,
         f"published_{first}", "seeds", "seeds_planned", "chosen"]
    ]  # fmt: skip
    for row in rows:
        numbers = [
            "" if number is None else f"{number:.4f}"
            for metric in (row.metric, *metrics)
            for number in row.spread(metric, share=metrics[metric].share)
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
    metrics: Mapping[str, Metric],
    *,
    source: str = "",
    holdout: float = 0.1,
    notes: Sequence[str] = (),
) -> str:
    """The same as text: accuracies by head and data set, the published ones beside them, and what was chosen.

    Args:
        rows: by data set and head.
        published: the first metric in % by row and data set.
        metrics: of the suite's task, the first one for all data sets.
        source: of the published numbers.
        holdout: fraction of the training images that choices were made on.
        notes: failures.
    """
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    heads = list(dict.fromkeys(row.head for row in rows))
    seeds = rows[0].planned if rows else 0
    by_pair = {(row.head, row.dataset): row for row in rows}
    first, metric = next(iter(metrics.items()))
    title = metric.title or first
    measured = "Test accuracy" if first == "top1" else f"{title} of the test images"
    lines = [
        "# Transfer",
        "",
        f"{measured}{' in %' if metric.share else ''}, mean ± standard deviation over {seeds} "
        f"seed{'s' * (seeds != 1)}. Choices were made on "
        f"{holdout:.0%} of the training images, held out; the test images were measured once for each seed.",
        "",
        f"## {title[0].upper()}{title[1:]}",
        "",
        *_header(["head", *datasets]),
    ]
    for head in heads:
        lines.append(_line([head, *(_cell(by_pair[head, name], first, metric.share) for name in datasets)]))
        if head in published:
            lines.append(_published(f"{head}, published", published[head], datasets))
    lines += [_published(name, numbers, datasets) for name, numbers in published.items() if name not in heads]
    if source:
        lines += ["", f"Published, all {title}: {source}"]
    per_class = [name for name in datasets if any(r.dataset == name and r.metric == "mean_per_class" for r in rows)]
    if per_class:
        lines += ["", "## Mean per class", "", *_header(["head", *per_class])]
        lines += [_line([h, *(_cell(by_pair[h, name], "mean_per_class", True) for name in per_class)]) for h in heads]
        lines += [
            "",
            "The literature reports this metric for these data sets. Candidates were chosen by it on these data sets, "
            "and by top-1 on the others.",
        ]
    lines += ["", "## Chosen", "", *_header(["data set", "head", "chosen", "seeds"])]
    for row in rows:
        chosen = "-" if row.chosen is None else ", ".join(f"{key} {value}" for key, value in row.chosen.items())
        done = len(row.scores.get(first, ()))
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


def _cell(row: TransferRow, metric: str, share: bool) -> str:
    average, deviation = row.spread(metric, share=share)
    if average is None:
        return "-"
    missing = "" if len(row.scores[metric]) == row.planned else f" ({len(row.scores[metric])} of {row.planned} seeds)"
    return f"{average:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}") + missing
