"""Random images in place of a data set, to try a recipe on a machine that has none."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from difformer.data import DataConfig, Sample

# Classes of the data sets whose number is fixed, by the names that recipes use.
CLASSES = {
    "imagenet": 1000, "cub": 200, "nabirds": 555, "dogs": 120, "elpv": 2, "elpv-levels": 4,
    "fgvcaircraft": 100, "aircraft": 100, "stanfordcars": 196, "cars": 196, "flowers102": 102, "flowers": 102,
    "oxfordiiitpet": 37, "pets": 37, "food101": 101, "dtd": 47, "eurosat": 10, "cifar10": 10, "cifar100": 100,
}  # fmt: skip
_OTHERWISE = 10


class FakeImages(Dataset[Sample]):
    """Noise with labels, the same at every call.

    Args:
        config: gives the size and, where it is known, the number of classes.
        length: images.
    """

    subset = None
    shards = None

    def __init__(self, config: DataConfig, length: int) -> None:
        names = config.class_names or tuple(map(str, range(CLASSES.get(config.name.lower(), _OTHERWISE))))
        self.class_names = names
        self.size = config.size
        self.labels: NDArray[np.int64] = np.arange(length) % len(names)
        self.ids: NDArray[np.int64] = np.arange(length)
        self.digest = "fake"

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: every epoch has the same images."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([int(self.ids[index])])
        pixels = rng.uniform(-1, 1, (3, self.size, self.size)).astype(np.float32)
        return Sample(torch.from_numpy(pixels), int(self.labels[index]), int(self.ids[index]))
