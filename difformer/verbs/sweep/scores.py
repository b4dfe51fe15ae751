"""The scores of a sweep, their ranking, and their table."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from difformer.config.reading import dotted
from difformer.tables import write_rows


@dataclass(frozen=True)
class Score:
    """One probe.

    Attributes:
        tap, block: the feature it reads.
        t: timestep.
        pool: side of the pooled map.
        settings: of the probe, those that were best on the validation images.
        accuracy: on the validation images, in [0, 1]; or the value of another criterion.
        gflop: the cost of the feature of one image.
    """

    tap: str
    block: int
    t: int
    pool: int
    settings: Mapping[str, float]
    accuracy: float
    gflop: float


def ranked(scores: Sequence[Score], *, larger_is_better: bool = True) -> list[Score]:
    """Scores with the best by the criterion first; of equal ones the cheapest first."""
    sign = 1 if larger_is_better else -1
    return sorted(scores, key=lambda score: (-sign * score.accuracy, score.gflop))


def best_score(scores: Sequence[Score], *, larger_is_better: bool = True) -> Score:
    """The best score; of equal ones the cheapest."""
    return ranked(scores, larger_is_better=larger_is_better)[0]


def pareto_front(scores: Sequence[Score], *, larger_is_better: bool = True) -> list[Score]:
    """The scores that no other beats at the same or a lower cost, by ascending cost."""
    front: list[Score] = []
    sign = 1 if larger_is_better else -1
    for score in sorted(scores, key=lambda score: (score.gflop, -sign * score.accuracy)):
        if not front or sign * score.accuracy > sign * front[-1].accuracy:
            front.append(score)
    return front


def csv_table(scores: Sequence[Score], *, column: str = "accuracy") -> str:
    """One line for each probe; `column` is the title of the column with `Score.accuracy`."""
    out = io.StringIO()
    rows = [dict(dotted(asdict(score))) for score in scores]
    names = list(rows[0])
    titles = [column if name == "accuracy" else name for name in names]
    write_rows(out, [titles, *([row.get(name) for name in names] for row in rows)], end="\n")
    return out.getvalue()
