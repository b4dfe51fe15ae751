"""Bootstrap confidence intervals over images (Efron & Tibshirani 1993, chapter 13)."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from difformer.analysis._inputs import Array, as_scores
from difformer.config import as_integer, as_positive_integer
from difformer.streams import Stream, generator

# From counts summed over images, (R, …), to (R,) numbers; one that has a `whole` gets the sum over all images as that.
Statistic: TypeAlias = Callable[..., NDArray[np.float64]]
# From (R, N) how often each image is in a resample to (R,) numbers.
WeightedStatistic: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# Drawn together: 16 MB of places and values.
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Interval:
    """A mean, or another number of a set of images, with its bootstrap confidence interval.

    Attributes:
        mean: the number itself, of the images as they are: the mean of their scores, or what is measured of them
            together, such as a mean IoU.
        low, high: ends of the interval.
        level: of confidence, such as 0.95.
        resamples: how many of them the ends were read from.
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
    return _interval(values.mean(), means, level)


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
    return _difference((a - b).mean(), _resampled_means(a - b, resamples, seed), level)


def bootstrap_counts(
    counts: NDArray[Any], statistic: Statistic, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of a number that is no mean over images but follows from counts summed over them, such as the
    mean IoU.

    Args:
        counts: (N, …) of each image, such as `class_counts`.
        statistic: from (R, …) sums to (R,) numbers, such as `mean_iou`. If it has a parameter `whole`, the sum over all
            images is given as that.
        resamples, level, seed: as in `bootstrap_mean`. Resamples in which the statistic is not a number, for want of
            what it counts, are left out; `Interval.resamples` says how many remain. Of `mean_iou` and `mean_accuracy`
            these are resamples without a class that is labelled in the whole set, so that all means are over the same
            classes. Leave out classes that few images have, `counts[:, kept]`, where few resamples remain.

    Raises:
        ValueError: as in `bootstrap_mean`, or the statistic is not a number for all images together.
    """
    whole, found = _resampled_sums([counts], statistic, resamples, seed)
    return _interval(whole, found, level)


def bootstrap_weights(
    size: int,
    statistic: WeightedStatistic,
    *,
    width: int = 1,
    shifts: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a number of a set of images that follows neither from a mean nor from sums, such as an
    average precision.

    Args:
        size: N, the number of images.
        statistic: from (R, N) how often each image is in a resample to (R,) numbers.
        width: numbers that it holds a resample, by which resamples are divided into parts.
        shifts: whether images that stand in a resample several times shift it, as they raise an average precision. The
            interval is then put around the number of the images as they are, see `spread_around`.
        resamples, level, seed: as in `bootstrap_counts`.

    Raises:
        ValueError: as in `bootstrap_counts`.
    """
    whole, found = _resampled(as_positive_integer("size", size), statistic, width, resamples, seed)
    return spread_around(whole, found, level) if shifts else _interval(whole, found, level)


def paired_bootstrap_weights(
    size: int,
    statistic_a: WeightedStatistic,
    statistic_b: WeightedStatistic,
    *,
    width: int = 1,
    shifts: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """As `paired_bootstrap`, of what `bootstrap_weights` is for.

    Args:
        size, width, shifts, resamples, level, seed: as in `bootstrap_weights`. What shifts two models may shift their
            difference, too.
        statistic_a: of one model.
        statistic_b: of another, for the same images in the same order.

    Raises:
        ValueError: as in `bootstrap_counts`.
    """

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return statistic_a(weights) - statistic_b(weights)

    whole, found = _resampled(as_positive_integer("size", size), difference, width, resamples, seed)
    return _difference(whole, found + whole - found.mean() if shifts else found, level)


def paired_bootstrap_counts(
    counts_a: NDArray[Any],
    counts_b: NDArray[Any],
    statistic: Statistic,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """As `paired_bootstrap`, of a number that follows from counts summed over images.

    Args:
        counts_a: (N, …) of each image.
        counts_b: (N, …) of another model, for the same images in the same order.
        statistic, resamples, level, seed: as in `bootstrap_counts`. Resamples are left out of both sides together.

    Raises:
        ValueError: as in `bootstrap_counts`, or different shapes.
    """
    if np.shape(counts_a) != np.shape(counts_b):
        raise ValueError(
            f"both counts must be of the same images and classes, got {np.shape(counts_a)} and {np.shape(counts_b)}"
        )
    return _difference(*_resampled_sums([counts_a, counts_b], statistic, resamples, seed), level)


def _resampled_sums(
    sides: list[NDArray[Any]], statistic: Statistic, resamples: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """The statistic of one side, or the difference of two: over the images as they are, and in each resample."""
    size = len(sides[0])
    if not size:
        raise ValueError("counts must be of one image at least")
    # Counts below 2**53 are exact in float64.
    flat = [np.asarray(side, dtype=np.float64).reshape(size, -1) for side in sides]
    shape = np.shape(sides[0])[1:]
    # What a statistic counts of the whole set, it must count in every resample.
    asks = _takes_whole(statistic)
    own = [partial(statistic, whole=one.sum(axis=0).reshape(shape)) if asks else statistic for one in flat]

    def of_sums(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = [of((weights @ one).reshape(len(weights), *shape)) for of, one in zip(own, flat, strict=True)]
        return values[0] - values[1] if len(values) == 2 else values[0]

    return _resampled(size, of_sums, max(one.shape[1] for one in flat), resamples, seed)


def _resampled(
    size: int, statistic: WeightedStatistic, width: int, resamples: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """A number of the images as they are, and of each resample that has one."""
    drawn = _weights(size, resamples, seed, width)
    found = [statistic(weights) for weights in itertools.chain([np.ones((1, size))], drawn)]
    whole, rest = found[0].item(), np.concatenate(found[1:])
    rest = rest[np.isfinite(rest)]
    if not np.isfinite(whole):
        raise ValueError(f"the statistic must be a finite number for all images together, got {whole}")
    if not len(rest):
        raise ValueError(
            "the statistic must be a finite number for at least one resample of the images; leave out of the "
            "counts what few images have, such as rare classes"
        )
    return whole, rest


def _takes_whole(statistic: Statistic) -> bool:
    try:
        return "whole" in inspect.signature(statistic).parameters
    except ValueError:
        # What numpy has built in may not say what it takes.
        return False


def _weights(size: int, resamples: int, seed: int, width: int) -> Iterator[NDArray[np.float64]]:
    """(R, size) how often each image is in a resample, of a few at a time."""
    rng, resamples = _generator(resamples, seed)
    rows = max(1, _CHUNK_ELEMENTS // max(size, width))
    for done in range(0, resamples, rows):
        drawn = rng.integers(size, size=(min(rows, resamples - done), size))
        yield np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(np.float64)


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
    found = _interval(value, np.asarray(resampled), level)
    shift = value - float(np.mean(resampled))
    return Interval(value, found.low + shift, found.high + shift, found.level, found.resamples)


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    rng, resamples = _generator(resamples, seed)
    size = len(values)
    rows = max(1, _CHUNK_ELEMENTS // size)
    return np.concatenate(
        [
            values[rng.integers(size, size=(min(rows, resamples - done), size))].mean(axis=1)
            for done in range(0, resamples, rows)
        ]
    )


def _generator(resamples: int, seed: int) -> tuple[np.random.Generator, int]:
    resamples, seed = as_positive_integer("resamples", resamples), as_integer("seed", seed)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return generator(Stream.BOOTSTRAP, seed), resamples


def _difference(whole: float, found: NDArray[np.float64], level: float) -> PairedDifference:
    tail = min((found <= 0).sum(), (found >= 0).sum())
    p_value = min(1.0, 2 * float(tail + 1) / (len(found) + 1))
    return PairedDifference(_interval(whole, found, level), p_value)


def _interval(whole: float, found: NDArray[np.float64], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(whole), float(low), float(high), float(level), len(found))
