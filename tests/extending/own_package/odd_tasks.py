"""Tasks that do something unusual, or wrong."""

import torch

from own_package.tasks import Regression


class Graded(Regression):
    """Counts a quarter of each image, under a name that is no metric."""

    counted = ("grade",)

    def counts(self, outputs, labels):
        return [torch.tensor(0.25 * len(labels))]

    def rates(self, counts, images):
        return {"grade": counts.get("grade", 0) / max(1, images)}

    def output_names(self, images):
        # As many as there are targets.
        assert images.targets.shape[1:] == (len(self._names),)
        return self._names


class Unmeasured(Regression):
    """Has no metrics."""

    def __init__(self, *, names, scale=1.0):
        super().__init__(names=names, scale=scale)
        self.metrics = {}


class OneLoss(Regression):
    """Gives one loss a batch."""

    def losses(self, outputs, labels):
        return super().losses(outputs, labels).mean()[None]


class Miscounted(Regression):
    """Counts more than it says."""

    def counts(self, outputs, labels):
        return [*super().counts(outputs, labels), labels.sum()]


class Counting(Regression):
    """Calls its output by the number of images of the split, which differs."""

    def output_names(self, images):
        return (f"one of {len(images)}",)
