"""How certain the result of a sweep or a search is, in words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from difformer.analysis import find_metric, images_of_equal_weight, share_interval

# The criteria that are shares of images, with the number of images for the interval: all, or as many as would have
# equal weight. No interval is known for other criteria, even if they are written in %, such as macro F1.
_IMAGES: dict[str, Callable[[Any], float]] = {"top1": len, "top5": len, "mean_per_class": images_of_equal_weight}


def has_interval(criterion: str) -> bool:
    """Whether an interval is known for a criterion's numbers."""
    return criterion in _IMAGES


@dataclass(frozen=True, eq=False)
class Chooser:
    """The images by which features were chosen.

    Attributes:
        labels: (N,) of the images.
        split: name of their split.
        criterion: name of a metric.
        of_images: whether the labels are the classes of the images; the numbers of pixels have no interval here.
    """

    labels: NDArray[Any]
    split: str
    criterion: str
    of_images: bool = True

    @property
    def has_interval(self) -> bool:
        """Whether an interval is known for its numbers."""
        return self.of_images and has_interval(self.criterion)

    @property
    def larger_is_better(self) -> bool:
        """Whether larger numbers of the criterion are better."""
        return find_metric(self.criterion).larger_is_better

    def interval(self, value: float) -> tuple[float, float] | None:
        """The 95 % interval of a share in [0, 1]; too high for the best of many, see `caution`. None without one."""
        return share_interval(value, _IMAGES[self.criterion](self.labels)) if self.has_interval else None

    def certain(self, value: float) -> str:
        """A number with its interval in %, or without one as `Metric.text` has it."""
        ends = self.interval(value)
        if ends is None:
            return find_metric(self.criterion).text(value)
        return f"{value:.2%} ({100 * ends[0]:.1f} … {100 * ends[1]:.1f})"

    def caution(self, tried: int) -> str:
        """A warning that the best of so many numbers is partly luck."""
        intervals, less = (", with 95 % intervals", "less") if self.has_interval else ("", "worse")
        return (
            f"by {self.criterion} of {len(self.labels):,} images of {self.split}{intervals}; the best of "
            f"{tried:,} is partly luck, so expect {less} on other images"
        )
