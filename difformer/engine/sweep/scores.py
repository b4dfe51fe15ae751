"""The scores of a sweep, and what follows from them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from difformer.engine.recipes.reading import dotted
from difformer.taps import TapSpec


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


def recommend(scores: Sequence[Score], taps: Mapping[str, TapSpec], count: int = 3) -> tuple[list[str], list[int]]:
    """Blocks and timesteps to fuse: the best block, then the best of other map sizes; the best timesteps likewise.

    Args:
        scores: of the sweep.
        taps: the backbone's.
        count: of blocks, and of timesteps.

    Returns:
        Taps in network order, and ascending timesteps.
    """
    by_rank = ranked(scores)
    best_taps = list(dict.fromkeys(score.tap for score in by_rank))
    chosen: list[str] = []
    for tap in best_taps:
        if len(chosen) < count and taps[tap].size not in {taps[other].size for other in chosen}:
            chosen.append(tap)
    chosen += [tap for tap in best_taps if tap not in chosen][: count - len(chosen)]
    best_timesteps = list(dict.fromkeys(score.t for score in by_rank if score.tap in chosen))
    return [tap for tap in taps if tap in chosen], sorted(best_timesteps[:count])


def recommended_recipe(scores: Sequence[Score], taps: Mapping[str, TapSpec]) -> str:
    """What the sweep recommends, as a YAML file that `difformer train RECIPE --config FILE` takes."""
    blocks, timesteps = recommend(scores, taps)
    best = best_score(scores)
    values: dict[str, Any] = {
        "extractor": {"taps": blocks, "timesteps": timesteps},
        "head": {"name": "difformer", "arguments": {"variant": "joint", "pool": max(score.pool for score in scores)}},
    }
    return (
        f"# The best single feature: {best.tap} at t = {best.t}, pool {best.pool}: {best.accuracy:.2%} of the "
        f"validation images.\n{yaml.safe_dump(values, sort_keys=False)}"
    )


def csv_table(scores: Sequence[Score]) -> str:
    """One line a probe."""
    out = io.StringIO()
    rows = [dict(dotted(asdict(score))) for score in scores]
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
