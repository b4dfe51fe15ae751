"""How certain what a sweep or a search has found is, in words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from difformer.analysis import find_metric, images_of_equal_weight, share_interval

# The criteria that are shares of images, and of how many: all, or as many as weigh alike. Nothing is known of how far
# another number lies from that of other images, also where it is written in %, as macro F1 is.
_IMAGES: dict[str, Callable[[Any], float]] = {"top1": len, "top5": len, "mean_per_class": images_of_equal_weight}


def has_interval(criterion: str) -> bool:
    """Whether it is known how far a criterion's numbers may lie from those of other images."""
    return criterion in _IMAGES


@dataclass(frozen=True, eq=False)
class Chooser:
    """The images by which features were chosen.

    Attributes:
        labels: (N,) of the images.
        split: what they are called.
        criterion: name of a metric.
    """

    labels: NDArray[Any]
    split: str
    criterion: str

    @property
    def larger_is_better(self) -> bool:
        """Of the criterion."""
        return find_metric(self.criterion).larger_is_better

    def interval(self, value: float) -> tuple[float, float] | None:
        """Of 95 %, for a share in [0, 1]; too high where it is the best of many, see `caution`. None for others."""
        return share_interval(value, _IMAGES[self.criterion](self.labels)) if has_interval(self.criterion) else None

    def certain(self, value: float) -> str:
        """A number with its interval in %, or without one as `Metric.text` has it."""
        ends = self.interval(value)
        if ends is None:
            return find_metric(self.criterion).text(value)
        return f"{value:.2%} ({100 * ends[0]:.1f} … {100 * ends[1]:.1f})"

    def caution(self, tried: int) -> str:
        """What a number that is the best of so many says of other images."""
        intervals, less = (", with 95 % intervals", "less") if has_interval(self.criterion) else ("", "worse")
        return (
            f"by {self.criterion} of {len(self.labels):,} images of {self.split}{intervals}; the best of "
            f"{tried:,} owes some of it to luck, so expect {less} of other images"
        )
