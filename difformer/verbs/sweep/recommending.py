"""The recipes that a sweep recommends: which features DifFormer fuses, and which ones DifFeed feeds back."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from difformer.config import Size
from difformer.taps import TapSpec
from difformer.tasks.classification.certainty import Chooser
from difformer.verbs.sweep.scores import Score, best_score, ranked

# The number of blocks, and of timesteps.
_COUNT = 3


def recommended_recipes(
    scores: Sequence[Score],
    taps: Mapping[str, TapSpec],
    chooser: Chooser,
    conditioning: Mapping[str, int | str] | None = None,
) -> dict[str, str]:
    """YAML files by name, for `difformer train RECIPE --config FILE`.

    Args:
        scores: of the sweep.
        taps: the backbone's, with maps and costs for images of the sweep's size.
        chooser: the images by which the sweep chose.
        conditioning: of the features.

    Returns:
        One for DifFormer, and one for DifFeed if the sweep has blocks of the decoder.
    """
    told = {"conditioning": dict(conditioning)} if conditioning else {}
    blocks, timesteps = recommend(scores, taps, larger_is_better=chooser.larger_is_better)
    # The finest pooling: attention finds the places that matter, where a linear probe needs a weight for each.
    arguments = {"variant": "joint", "pool": max(score.pool for score in scores)}
    gflop = len(timesteps) * max(taps[tap].flops for tap in blocks) / 1e9
    difformer = {
        "extractor": {"taps": blocks, "timesteps": timesteps, "feedback_taps": [], **told},
        "head": {"name": "difformer", "arguments": arguments},
    }
    text = _described(scores, chooser, f"These together take {gflop:.3g} GFLOP an image.", difformer)
    in_decoder = list(taps)[len(taps) // 2 + 1 :]
    decoder = [score for score in scores if score.tap in in_decoder]
    if not decoder:
        return {"recommended.yaml": text}
    return {"recommended.yaml": text, "recommended_diffeed.yaml": _diffeed(decoder, taps, chooser, told)}


def recommended_segmentation(
    scores: Sequence[Score],
    taps: Mapping[str, TapSpec],
    chooser: Chooser,
    conditioning: Mapping[str, int | str] | None = None,
) -> dict[str, str]:
    """As `recommended_recipes`, for maps of classes: one for a dense DifFormer, and one for UperNet at one timestep."""
    told = {"conditioning": dict(conditioning)} if conditioning else {}
    blocks, timesteps = recommend(scores, taps, larger_is_better=chooser.larger_is_better)
    found = {}
    for name, head, steps in (
        ("recommended.yaml", "dense_difformer", timesteps),
        ("recommended_upernet.yaml", "upernet", [best_score(scores, larger_is_better=chooser.larger_is_better).t]),
    ):
        gflop = len(steps) * max(taps[tap].flops for tap in blocks) / 1e9
        values = {
            "task": {"name": "segmentation"},
            "extractor": {"taps": blocks, "timesteps": steps, "feedback_taps": [], **told},
            "head": {"name": head, "arguments": {}},
        }
        found[name] = _described(scores, chooser, f"These together take {gflop:.3g} GFLOP an image.", values)
    return found


def recommend(
    scores: Sequence[Score], taps: Mapping[str, TapSpec], count: int = _COUNT, *, larger_is_better: bool = True
) -> tuple[list[str], list[int]]:
    """Blocks and timesteps to fuse: the best block, then the best of other map sizes; the best timesteps of these.

    Args:
        scores: of the sweep.
        taps: the backbone's.
        count: of blocks, and of timesteps.
        larger_is_better: of the sweep's criterion.

    Returns:
        Taps in network order, and timesteps in ascending order.
    """
    by_rank = ranked(scores, larger_is_better=larger_is_better)
    best_taps = list(dict.fromkeys(score.tap for score in by_rank))
    chosen = _of_different_sizes(best_taps, taps)[:count]
    chosen += [tap for tap in best_taps if tap not in chosen][: count - len(chosen)]
    best_timesteps = list(dict.fromkeys(score.t for score in by_rank if score.tap in chosen))
    return [tap for tap in taps if tap in chosen], sorted(best_timesteps[:count])


def _of_different_sizes(ordered: Sequence[str], taps: Mapping[str, TapSpec]) -> list[str]:
    """The first tap of each map size, in the same order."""
    first: dict[Size, str] = {}
    for tap in ordered:
        first.setdefault(taps[tap].size, tap)
    return list(first.values())


def _diffeed(decoder: Sequence[Score], taps: Mapping[str, TapSpec], chooser: Chooser, told: Mapping[str, Any]) -> str:
    """Reads the best block of the decoder, and feeds back the best of each map size at its timestep."""
    by_rank = ranked(decoder, larger_is_better=chooser.larger_is_better)
    best = by_rank[0]
    at_best = [score.tap for score in by_rank if score.t == best.t]
    fed_back = _of_different_sizes(list(dict.fromkeys(at_best)), taps)
    values = {
        "extractor": {
            "feedback_taps": [tap for tap in taps if tap in fed_back],
            "taps": [best.tap],
            "timesteps": [best.t],
            **told,
        },
        "features": "live",
        "head": {"name": "attention", "arguments": {"pool": max(score.pool for score in decoder)}},
    }
    return _described(
        decoder, chooser, "It is read in the second pass; the best block of each map size is fed back.", values
    )


def _described(scores: Sequence[Score], chooser: Chooser, remark: str, values: Mapping[str, Any]) -> str:
    best = best_score(scores, larger_is_better=chooser.larger_is_better)
    comments = [
        f"The best single feature: {best.tap} at t = {best.t}, pool {best.pool}: {chooser.certain(best.accuracy)},",
        f"{chooser.caution(len(scores))}.",
        remark,
    ]
    return "".join(f"# {line}\n" for line in comments) + yaml.safe_dump(dict(values), sort_keys=False)
