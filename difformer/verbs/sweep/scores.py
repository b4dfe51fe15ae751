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
        accuracy: on the validation images, in [0, 1], by the sweep's criterion.
        gflop: of the feature of one image.
    """

    tap: str
    block: int
    t: int
    pool: int
    settings: Mapping[str, float]
    accuracy: float
    gflop: float


def ranked(scores: Sequence[Score]) -> list[Score]:
    """The most accurate first; of equal ones the cheapest."""
    return sorted(scores, key=lambda score: (-score.accuracy, score.gflop))


def best_score(scores: Sequence[Score]) -> Score:
    """The first by rank."""
    return ranked(scores)[0]


def pareto_front(scores: Sequence[Score]) -> list[Score]:
    """Those that no other beats at the same or a lower cost, from cheap to dear."""
    front: list[Score] = []
    for score in sorted(scores, key=lambda score: (score.gflop, -score.accuracy)):
        if not front or score.accuracy > front[-1].accuracy:
            front.append(score)
    return front


def csv_table(scores: Sequence[Score]) -> str:
    """One line a probe."""
    out = io.StringIO()
    rows = [dict(dotted(asdict(score))) for score in scores]
    names = list(rows[0])
    write_rows(out, [names, *([row.get(name) for name in names] for row in rows)], end="\n")
    return out.getvalue()
