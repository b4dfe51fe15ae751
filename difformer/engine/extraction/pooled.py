"""Features of every block at one timestep, pooled in every way, from one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from difformer.data import ImageDataset
from difformer.engine.config.recipe import BatchSize
from difformer.engine.cost.costs import human_bytes
from difformer.engine.cost.step_memory import free_memory
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.runtime.outputs import evaluate
from difformer.features import FeatureExtractor
from difformer.features.reduced import read_reduced
from difformer.taps import FeatureKey


class PooledInEveryWay(nn.Module):
    """Images to vectors: each block's map averaged to each grid of cells, all joined.

    Args:
        extractor: reads the maps, at one timestep.
        pools: sides to average to, by adaptive average pooling.

    Attributes:
        places: columns of each (tap, pool) in the vectors.
        width: D, the number of columns.
    """

    def __init__(self, extractor: FeatureExtractor, pools: Sequence[int]) -> None:
        super().__init__()
        self.extractor = extractor
        self.places: dict[tuple[str, int], slice] = {}
        start = 0
        for key, spec in extractor.specs.items():
            for pool in pools:
                stop = start + spec.channels * pool**2
                self.places[key.tap, pool] = slice(start, stop)
                start = stop
        self.width = start

    def forward(self, images: Tensor, ids: Tensor, **conditioning: Tensor) -> Tensor:
        """Args: images (B, 3, H, W) in [-1, 1]; ids (B,); conditioning as the extractor's. Returns (B, D) float32."""
        with torch.autocast(images.device.type, enabled=False):
            vectors = read_reduced(self.extractor, images, ids, self._pool, **conditioning)
        return torch.cat([vectors[place] for place in self.places], dim=1)

    def _pool(self, key: FeatureKey, maps: Tensor) -> dict[tuple[str, int], Tensor]:
        pools = [pool for tap, pool in self.places if tap == key.tap]
        return {(key.tap, pool): F.adaptive_avg_pool2d(maps.float(), pool).flatten(1) for pool in pools}


@dataclass(frozen=True, eq=False)
class SplitFeatures:
    """The images of a split at one timestep.

    Attributes:
        vectors: (N, D) float32.
        labels: (N,).
        places: columns of each (tap, pool).
    """

    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    places: Mapping[tuple[str, int], slice]

    def of(self, tap: str, pool: int) -> Tensor:
        """(N, channels · pool²) of one block and pooling."""
        return torch.from_numpy(self.vectors[:, self.places[tap, pool]])


def check_memory(width: int, counts: Sequence[int]) -> None:
    """Checks that the vectors fit into memory, before splits are read.

    Args:
        width: of a vector.
        counts: vectors of each split.

    Raises:
        ValueError: they need more memory than is free.
    """
    # The batches of a split are still in memory while they are joined; every process here holds all vectors.
    needed = (sum(counts) + max(counts)) * width * torch.float32.itemsize
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{sum(counts):,} vectors of {width:,} numbers each need about {human_bytes(needed)} of memory, and "
            f"{human_bytes(free)} are free; give fewer taps, smaller pools or fewer pixels, or limit the training "
            "images with data.k_shot or data.percent"
        )


def read_split(
    model: PooledInEveryWay, images: ImageDataset, accelerator: Any, *, batch_size: BatchSize, workers: int, title: str
) -> SplitFeatures:
    """Reads a split, each image once, on all processes together; see `evaluate`."""
    outputs = evaluate(
        model, images, collate_readable, accelerator, batch_size=batch_size, workers=workers, progress=True, title=title
    )
    return SplitFeatures(outputs.values, outputs.labels, model.places)
