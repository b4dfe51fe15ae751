"""Bootstrap confidence intervals over images (Efron & Tibshirani 1993, chapter 13)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from difformer.analysis._inputs import Array, as_scores
from difformer.config import as_integer, as_positive_integer
from difformer.streams import Stream, generator

# Drawn together: 16 MB of places and values.
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Interval:
    """A mean, or another number of a set of images, with its bootstrap confidence interval.

    Attributes:
        mean: over the images as they are.
        low, high: ends of the interval.
        level: of confidence, such as 0.95.
        resamples: that the ends were read from.
    """

    mean: float
    low: float
    high: float
    level: float
    resamples: int


@dataclass(frozen=True)
class PairedDifference:
    """How two sets of predictions for the same images differ.

    Attributes:
        difference: of the means, the first minus the second.
        p_value: two-sided, for no difference: twice the smaller share of resamples on either side of zero, with
            the difference found counted among them. In (0, 1].
    """

    difference: Interval
    p_value: float


def bootstrap_mean(scores: Array, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean of per-image scores: hits, losses or anything else.

    Args:
        scores: (N,) finite numbers or truth values, one an image.
        resamples: of the N images, with replacement.
        level: of confidence, in (0, 1).
        seed: not negative.

    Raises:
        ValueError: no images, wrong shape or type, or a number that is not finite or out of range.
    """
    values = as_scores("scores", scores)
    means = _resampled_means(values, resamples, seed)
    return _interval(values, means, level)


def paired_bootstrap(
    scores_a: Array, scores_b: Array, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Percentile interval of the difference of two means over the same images, which are resampled together.

    Args:
        scores_a: (N,) such as `ImageScores.correct` of one classifier.
        scores_b: (N,) of another, for the same images in the same order.
        resamples, level, seed: as in `bootstrap_mean`.

    Raises:
        ValueError: as in `bootstrap_mean`, or different numbers of images.
    """
    a, b = as_scores("scores_a", scores_a), as_scores("scores_b", scores_b)
    if a.shape != b.shape:
        raise ValueError(f"both scores must be of the same images, got {len(a)} and {len(b)} of them")
    means = _resampled_means(a - b, resamples, seed)
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * float(tail + 1) / (len(means) + 1))
    return PairedDifference(_interval(a - b, means, level), p_value)


def spread_around(value: float, resampled: NDArray[np.float64], level: float = 0.95) -> Interval:
    """An interval for a number that resampling shifts, as it does distances between sets: how far the resamples lie
    from their own mean, put around the number.

    Args:
        value: of the images as they are.
        resampled: (R,) the same of resampled images.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: the level is out of range.
    """
    found = _interval(np.asarray([value]), np.asarray(resampled), level)
    shift = value - float(np.mean(resampled))
    return Interval(value, found.low + shift, found.high + shift, found.level, found.resamples)


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    resamples = as_positive_integer("resamples", resamples)
    seed = as_integer("seed", seed)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    rng = generator(Stream.BOOTSTRAP, seed)
    size = len(values)
    rows = max(1, _CHUNK_ELEMENTS // size)
    return np.concatenate(
        [
            values[rng.integers(size, size=(min(rows, resamples - done), size))].mean(axis=1)
            for done in range(0, resamples, rows)
        ]
    )


def _interval(values: NDArray[np.float64], means: NDArray[np.float64], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), float(level), len(means))
