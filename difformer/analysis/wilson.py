"""How certain a share of images is."""

from math import sqrt
from statistics import NormalDist

import numpy as np

from difformer.analysis._inputs import Array


def share_interval(share: float, count: float, *, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share of independent images (E. B. Wilson 1927, "Probable inference, the law of
    succession, and statistical inference").

    Args:
        share: that was found, in [0, 1].
        count: of the images; need not be whole, see `images_of_equal_weight`.
        level: of confidence, in (0, 1).

    Returns:
        Its ends, in [0, 1].

    Raises:
        ValueError: a number out of range.
    """
    if not 0 <= share <= 1 or not count > 0 or not 0 < level < 1:
        raise ValueError(
            f"an interval needs a share in [0, 1] of more than 0 images and a level in (0, 1), got {share:g} of "
            f"{count:g} at {level:g}"
        )
    squared = NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = share + squared / (2 * count)
    half = sqrt(squared * (share * (1 - share) / count + squared / (4 * count**2)))
    scale = 1 + squared / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def images_of_equal_weight(labels: Array) -> float:
    """The number of independent images whose accuracy has the variance of a mean over classes, where all classes are
    equally difficult.

    Its variance is the mean of the classes' variances over the number of classes, so that of C classes with n_c images
    it is C² / sum(1 / n_c): all images where classes are of one size, few where one class has few.

    Args:
        labels: (N,) integers, at least one.
    """
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return float(len(counts) ** 2 / (1 / counts).sum())
