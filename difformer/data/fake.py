"""Random images in place of a data set, to try a recipe on a machine that has none."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from difformer.config import sides
from difformer.data import (
    HOLDOUT,
    Boxes,
    DataConfig,
    DenseSample,
    Mask,
    Origin,
    Points,
    Sample,
    Target,
    canonical_name,
)
from difformer.data.targets import as_example


@dataclass(frozen=True)
class _Known:
    """Classes, and images by split, of a data set whose size is fixed."""

    classes: int
    images: dict[str, int]


def _known(classes: int, **images: int) -> _Known:
    return _Known(classes, images)


KNOWN = {
    "imagenet": _known(1000, train=1_281_167, val=50_000),
    "fgvcaircraft": _known(100, train=3334, val=3333, trainval=6667, test=3333),
    "stanfordcars": _known(196, train=8144, test=8041),
    "cub": _known(200, train=5994, test=5794),
    "dogs": _known(120, train=12_000, test=8580),
    "flowers102": _known(102, train=1020, val=1020, trainval=2040, test=6149),
    "nabirds": _known(555, train=23_929, test=24_633),
    "oxfordiiitpet": _known(37, train=3680, trainval=3680, test=3669),
    "food101": _known(101, train=75_750, test=25_250),
    "dtd": _known(47, train=1880, val=1880, trainval=3760, test=1880),
    "eurosat": _known(10, train=21_600, test=5400, all=27_000),
    "cifar10": _known(10, train=50_000, test=10_000),
    "cifar100": _known(100, train=50_000, test=10_000),
    "elpv": _known(2, train=1968, test=656, all=2624),
    "elpvlevels": _known(4, train=1968, test=656, all=2624),
}
_OTHER_CLASSES = 10


class FakeImages(Dataset[Sample | DenseSample]):
    """Noise with labels, the same at every call; as many as the data set has, where that is known.

    Args:
        config: names the data set and says the size and what is held out or left out.
        split: `train`, `holdout`, or one of the data set's.
        length: images of data sets whose size is not known.
        label: of every image, for tasks whose labels are no classes, an example of a mask, boxes or points for an image
            of any size; when None, each class in turn.
    """

    subset = None
    shards = None
    skipped = np.empty(0, dtype=np.int64)

    def __init__(self, config: DataConfig, split: str, length: int, *, label: Tensor | Target | None = None) -> None:
        known = KNOWN.get(canonical_name(config.name), _known(_OTHER_CLASSES))
        self.class_names = config.class_names or tuple(map(str, range(known.classes)))
        self.sides = sides(config.size)
        own = config.split_name("train" if split == HOLDOUT else split)
        count = known.images.get(own, length)
        # The holdout and the label subset concern the training split alone.
        held = round(count * config.holdout)
        if split == HOLDOUT:
            count = held
        elif split == "train":
            count -= held
            if config.k_shot is not None:
                count = min(config.k_shot * len(self.class_names), count)
            elif config.percent is not None:
                count = max(len(self.class_names), round(count * config.percent / 100))
        self.labels: NDArray[np.int64] = np.arange(count) % len(self.class_names)
        self.ids: NDArray[np.int64] = np.arange(count)
        self.digest = "fake"
        dense = isinstance(label, Mask | Boxes | Points)
        self._label = as_example(label, self.sides, len(self.class_names)) if dense else label  # type: ignore[arg-type]

    @property
    def targets(self) -> NDArray[np.float32] | None:
        """(N, …) the label of every image, as one array that cannot be written to; None where labels are classes."""
        if not isinstance(self._label, Tensor):
            return None
        label = self._label.numpy().astype(np.float32)
        return np.broadcast_to(label, (len(self), *label.shape))

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: every epoch has the same images."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample | DenseSample:
        rng = np.random.default_rng([int(self.ids[index])])
        pixels = torch.from_numpy(rng.uniform(-1, 1, (3, *self.sides)).astype(np.float32))
        label, number = self._label, int(self.ids[index])
        if isinstance(label, Mask | Boxes | Points):
            return DenseSample(pixels, label, number, Origin(label, self.sides, self.sides))
        return Sample(pixels, int(self.labels[index]) if label is None else label, number)
