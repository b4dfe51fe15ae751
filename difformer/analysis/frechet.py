"""How far apart two sets of images are by mean and covariance of their features: the Fréchet distance."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from logging import getLogger

import numpy as np
import torch
from torch import Tensor

from difformer.analysis._inputs import Array, as_matrix
from difformer.analysis.bootstrap import Interval, spread_around
from difformer.config import as_integer, as_positive_integer
from difformer.streams import Stream, generator

_log = getLogger(__name__)

# Images for each of D numbers below which the distance depends more on their number than on what they show.
_SOUND = 10
# Of the largest value; above it, a matrix has rounding errors and is no covariance.
_ROUNDING = 1e-6
# Rows that are taken at once as float64.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of the features of a set of images.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, sums of products divided by n - 1.
        count: n, the number of images; None where it is not known, as in files that others wrote.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, or a matrix that is not symmetric.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    def __post_init__(self) -> None:
        covariance = as_matrix("the covariance", self.covariance).double().cpu()
        mean = as_matrix("the mean", np.asarray(self.mean)[None], width=len(covariance)).double().cpu()[0]
        if covariance.shape[1] != len(mean):
            raise ValueError(f"the covariance must be square, got {tuple(covariance.shape)}")
        if (covariance - covariance.T).abs().max() > _ROUNDING * covariance.abs().max():
            raise ValueError("the covariance must be symmetric")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)


class FeatureMoments:
    """Mean and covariance from one batch after another, in memory that depends on D alone.

    Deviations from the mean so far are summed up in float64 (Chan, Golub & LeVeque 1983, "Algorithms for computing the
    sample variance", the pairwise update): plain sums of products would lose the covariance of features far from 0.
    Batches may come in any order and size, and moments that several processes gathered may be merged: the result is
    the same up to rounding.

    Attributes:
        count: images so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._scatter = torch.zeros(0, dtype=torch.float64, device="cpu")

    def update(self, features: Array) -> None:
        """Takes a batch into account.

        Args:
            features: (B, D) finite.

        Raises:
            ValueError: wrong shape, type or values, or another D than before.
        """
        for rows in as_matrix("features", features).split(_CHUNK):
            batch = FeatureMoments()
            rows = rows.double()
            mean = rows.mean(dim=0)
            rows = rows - mean
            batch.count, batch._mean, batch._scatter = len(rows), mean.cpu(), (rows.T @ rows).cpu()
            self.merge(batch)

    def merge(self, other: "FeatureMoments") -> None:
        """Takes all images of others into account; raises ValueError where these have another D."""
        if not other.count:
            return
        if not self.count:
            self._mean, self._scatter = torch.zeros_like(other._mean), torch.zeros_like(other._scatter)
        if self._mean.shape != other._mean.shape:
            raise ValueError(f"features must have {len(self._mean)} columns as before, got {len(other._mean)}")
        total = self.count + other.count
        apart = other._mean - self._mean
        self._scatter += other._scatter
        self._scatter += torch.outer(apart, apart) * (self.count * other.count / total)
        self._mean += apart * (other.count / total)
        self.count = total

    def statistics(self) -> FeatureStatistics:
        """Of all images so far; raises ValueError where there are fewer than two."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two images, got {self.count}")
        return FeatureStatistics(self._mean.clone(), self._scatter / (self.count - 1), self.count)


def check_image_count(count: int, width: int, what: str = "images") -> None:
    """Refuses a Fréchet distance of too few images, and warns in the log of one of few.

    The distance grows as the number of images falls, whatever they show: from two samples of one 256-dimensional
    Gaussian it is 110, 33 and 6.7 at 300, 1,000 and 5,000 images.

    Args:
        count: n, of one set.
        width: D.
        what: the set is called.

    Raises:
        ValueError: n is at most D, so that the covariance is singular.
    """
    if count <= width:
        raise ValueError(
            f"a Fréchet distance of {width:,} features needs more than {width:,} images on either side, better "
            f"{_SOUND * width:,}; there are {count:,} {what}"
        )
    if count < _SOUND * width:
        _log.warning(
            "%s %s are few for a Fréchet distance of %s features: it depends strongly on their number below %s; "
            "compare it only with distances of as many images",
            f"{count:,}", what, f"{width:,}", f"{_SOUND * width:,}",
        )  # fmt: skip


def frechet_distance(x: FeatureStatistics, y: FeatureStatistics, *, allow_few: bool = False) -> float:
    """The Fréchet distance between two Gaussians (Dowson & Landau 1982; eq. 6 of Heusel et al. 2017), squared as usual:
    |m_x - m_y|² + Tr(S_x) + Tr(S_y) - 2 Tr(sqrt(S_x S_y)).

    The last trace is the nuclear norm of A_x A_yᵀ with S = AᵀA, so that no square root of a product is taken.

    Args:
        x, y: of the same features.
        allow_few: compute it although there are not more images than features.

    Returns:
        At least 0; 0 for the same statistics, up to rounding.

    Raises:
        ValueError: other widths, too few images, or a matrix that is no covariance.
    """
    if x.width != y.width:
        raise ValueError(f"the statistics must be of the same features, got {x.width} and {y.width} of them")
    for one in (x, y):
        if one.count is not None and not allow_few:
            check_image_count(one.count, one.width)
    apart = (x.mean - y.mean).square().sum()
    overlap = torch.linalg.svdvals(_root(x.covariance) @ _root(y.covariance).T).sum()
    return max(0.0, float(apart + x.covariance.trace() + y.covariance.trace() - 2 * overlap))


def frechet_distance_of_features(x: Array, y: Array, *, allow_few: bool = False) -> float:
    """The Fréchet distance between two sets of features, without their covariances: the most exact way, also where
    these are singular.

    Args:
        x: (N, D) finite.
        y: (M, D) finite.
        allow_few: compute it although N or M is at most D.

    Returns:
        As `frechet_distance`.

    Raises:
        ValueError: wrong shapes, types or values, or too few images.
    """
    first = as_matrix("features", x)
    second = as_matrix("features", y, width=first.shape[1]).to(first.device)
    parts = []
    for rows in (first, second):
        if not allow_few:
            check_image_count(*rows.shape)
        if len(rows) < 2:
            raise ValueError(f"a covariance needs at least two images, got {len(rows)}")
        centred = rows.double() - rows.double().mean(dim=0)
        centred /= (len(rows) - 1) ** 0.5
        parts.append(torch.linalg.qr(centred, mode="r").R if len(rows) > rows.shape[1] else centred)
    apart = (first.double().mean(dim=0) - second.double().mean(dim=0)).square().sum()
    overlap = torch.linalg.svdvals(parts[0] @ parts[1].T).sum()
    return max(0.0, float(apart + parts[0].square().sum() + parts[1].square().sum() - 2 * overlap))


def bootstrap_frechet(
    x: Array,
    y: Array | FeatureStatistics,
    *,
    resamples: int = 100,
    level: float = 0.95,
    seed: int = 0,
    allow_few: bool = False,
    on_resample: Callable[[], object] | None = None,
) -> Interval:
    """How far the Fréchet distance would scatter with other images, as many of them.

    Both sets are resampled. Resampling raises the distance by about as much as the number of images does already; the
    resamples' spread around their own mean is therefore put around the distance (Efron & Tibshirani 1993, chapter 10),
    and the interval is one of the distance at these numbers of images, not at infinitely many.

    Args:
        x: (N, D) finite, N above D.
        y: (M, D) finite, M above D, on the same device; or statistics, which stay as they are.
        resamples: of the images, with replacement.
        level: of confidence, in (0, 1).
        seed: not negative.
        allow_few: as for `frechet_distance`.
        on_resample: called after each of them.

    Returns:
        Its `mean` is the distance, and its `low` at least 0.

    Raises:
        ValueError: wrong shapes, types or values, or too few images.
    """
    resamples, seed = as_positive_integer("resamples", resamples), as_integer("seed", seed)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    sets = [one if isinstance(one, FeatureStatistics) else as_matrix("features", one) for one in (x, y)]
    known = [one if isinstance(one, FeatureStatistics) else _moments(one) for one in sets]
    whole = frechet_distance(*known, allow_few=allow_few)
    rng = generator(Stream.BOOTSTRAP, seed)
    drawn = []
    for _ in range(resamples):
        parts = [one if isinstance(one, FeatureStatistics) else _resample(one, rng) for one in sets]
        drawn.append(frechet_distance(*parts, allow_few=True))
        if on_resample is not None:
            on_resample()
    found = spread_around(whole, np.asarray(drawn), level)
    return replace(found, low=max(0.0, found.low))


def _root(covariance: Tensor) -> Tensor:
    """(D, D) A with AᵀA the covariance; raises ValueError where there is none."""
    # Ten times as fast as the decomposition, which singular matrices need.
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return lower.T
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -_ROUNDING * values[-1].abs():
        raise ValueError(
            f"a covariance has no negative eigenvalues, but the smallest of this matrix is {values[0]:.3g}"
        )
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def _moments(features: Tensor) -> FeatureStatistics:
    moments = FeatureMoments()
    moments.update(features)
    return moments.statistics()


def _resample(features: Tensor, rng: np.random.Generator) -> FeatureStatistics:
    """Statistics of as many rows, drawn with replacement."""
    count = len(features)
    weights = np.bincount(rng.integers(count, size=count), minlength=count)
    return _moments(features[torch.from_numpy(np.repeat(np.arange(count), weights)).to(features.device)])
