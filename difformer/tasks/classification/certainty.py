"""How certain what a sweep or a search has found is, in words."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from difformer.analysis import images_of_equal_weight, share_interval


@dataclass(frozen=True, eq=False)
class Chooser:
    """The images by which features were chosen.

    Attributes:
        labels: (N,) of the images.
        split: what they are called.
        criterion: top1 or mean_per_class.
    """

    labels: NDArray[Any]
    split: str
    criterion: str

    def interval(self, accuracy: float) -> tuple[float, float]:
        """Of 95 %, for an accuracy in [0, 1]; too high where the accuracy is the best of many, see `caution`."""
        weigh = images_of_equal_weight if self.criterion == "mean_per_class" else len
        return share_interval(accuracy, weigh(self.labels))

    def certain(self, accuracy: float) -> str:
        """An accuracy in [0, 1] in %, with its interval."""
        low, high = self.interval(accuracy)
        return f"{accuracy:.2%} ({100 * low:.1f} … {100 * high:.1f})"

    def caution(self, tried: int) -> str:
        """What a number that is the best of so many says of other images."""
        return (
            f"by {self.criterion} of {len(self.labels):,} images of {self.split}, with 95 % intervals; the best of "
            f"{tried:,} owes some of it to luck, so expect less of other images"
        )
