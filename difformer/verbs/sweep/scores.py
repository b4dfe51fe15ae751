"""The scores of a sweep, and what follows from them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from difformer.config.reading import dotted
from difformer.tables import write_rows


@dataclass(frozen=True)
class Score:
    """One probe.

    Attributes:
        tap, block: where it reads.
        t: timestep.
        pool: side of the pooled map.
        settings: of the probe, those that were best on the validation images.
        accuracy: on the validation images, in [0, 1], or the number of another criterion.
        gflop: of the feature of one image.
    """

    tap: str
    block: int
    t: int
    pool: int
    settings: Mapping[str, float]
    accuracy: float
    gflop: float


def ranked(scores: Sequence[Score], *, larger_is_better: bool = True) -> list[Score]:
    """The best by the criterion first, which says which way it counts; of equal ones the cheapest."""
    sign = 1 if larger_is_better else -1
    return sorted(scores, key=lambda score: (-sign * score.accuracy, score.gflop))


def best_score(scores: Sequence[Score], *, larger_is_better: bool = True) -> Score:
    """The first by rank."""
    return ranked(scores, larger_is_better=larger_is_better)[0]


def pareto_front(scores: Sequence[Score], *, larger_is_better: bool = True) -> list[Score]:
    """Those that no other beats at the same or a lower cost, from cheap to dear."""
    front: list[Score] = []
    sign = 1 if larger_is_better else -1
    for score in sorted(scores, key=lambda score: (score.gflop, -sign * score.accuracy)):
        if not front or sign * score.accuracy > sign * front[-1].accuracy:
            front.append(score)
    return front


def csv_table(scores: Sequence[Score], *, column: str = "accuracy") -> str:
    """One line a probe; `column` is the title of what is in `accuracy`."""
    out = io.StringIO()
    rows = [dict(dotted(asdict(score))) for score in scores]
    names = list(rows[0])
    titles = [column if name == "accuracy" else name for name in names]
    write_rows(out, [titles, *([row.get(name) for name in names] for row in rows)], end="\n")
    return out.getvalue()
