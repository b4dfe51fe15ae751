"""Features from the cache on disk, as a data set for data loaders."""

import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from difformer.data.samples import collate_labels
from difformer.features.shards import CacheManifest, FeatureCacheError, Shard, shard_path
from difformer.files import expand_user
from difformer.taps import FeatureKey, Features


class FeatureSample(NamedTuple):
    """The features of one image.

    Attributes:
        features: (C, h, w) by key, in the dtype they are stored in.
        label: in [0, number of classes); for a data set with targets, the (…) float32 target.
        id: the image's stable number.
    """

    features: dict[FeatureKey, Tensor]
    label: int | Tensor
    id: int


class FeatureBatch(NamedTuple):
    """The features of several images.

    Attributes:
        features: (B, C, h, w) by key, in the dtype they are stored in; what heads read.
        labels: (B,) int64, or the (B, …) float32 targets.
        ids: (B,) int64.
    """

    features: Features
    labels: Tensor
    ids: Tensor


def collate_features(samples: Sequence[FeatureSample]) -> FeatureBatch:
    """Stacks samples; the `collate_fn` of a data loader."""
    keys = samples[0].features
    features = Features((key, torch.stack([sample.features[key] for sample in samples])) for key in keys)
    labels, ids = collate_labels([s.label for s in samples]), collate_labels([s.id for s in samples])
    return FeatureBatch(features, labels, ids)


class CachedFeatures(Dataset[FeatureSample]):
    """The features of a split, with random access; a data loader needs `collate_features` with it.

    Only the requested rows are read. They are not compared with the stored digests; `verify` does that for all rows.

    Args:
        folder: of the cache, as extraction printed it. A leading `~` is the home folder.
        views: how many views epochs cycle through; all complete ones when None.
        keys: the features to read, in this order; all when None.

    Attributes:
        folder: of the cache.
        manifest: what it holds.
        views: augmentation and noise draws of each image.
        keys: of the features that are read.
        labels: (N,) int64 in [0, number of classes).
        ids: (N,) int64 stable numbers.
        targets: (N, …) of the data set, which a cache does not hold; set them to replace the labels.

    Raises:
        FileNotFoundError: there is no cache in the folder.
        FeatureCacheError: a shard is missing, damaged or of another cache, or views hold different images.
        ValueError: a feature that is not in it.
    """

    def __init__(
        self, folder: str | Path, *, views: int | None = None, keys: Sequence[FeatureKey] | None = None
    ) -> None:
        self.folder = expand_user(folder)
        self.manifest = CacheManifest.read(self.folder)
        if views is not None and views < 1:
            raise ValueError(f"views must be at least 1, got {views}")
        if views is None:
            files, views = set(os.listdir(self.folder)), 0
            while all(shard_path(self.folder, views, n).name in files for n in range(self.manifest.num_shards)):
                views += 1
        self.views = max(1, views)
        self.keys = tuple(self.manifest.shapes if keys is None else keys)
        if strangers := [str(key) for key in self.keys if key not in self.manifest.shapes]:
            there = ", ".join(map(str, self.manifest.shapes))
            raise ValueError(f"{self.folder} does not hold {', '.join(strangers)}; it has {there}")
        self._shards: dict[tuple[int, int], Shard] = {}
        # In shared memory, so that it is the same in the workers of a data loader.
        self._epoch = torch.zeros(1, dtype=torch.int64, device="cpu").share_memory_()
        labels, ids = self._read_numbers()
        self.labels: NDArray[np.int64] = np.concatenate(labels)
        self.ids: NDArray[np.int64] = np.concatenate(ids)
        self.targets: NDArray[np.float32] | None = None
        self._starts = np.cumsum([0, *map(len, ids)])

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def missing(self) -> int:
        """How many images of the split could not be read when the features were extracted."""
        return self.manifest.images - len(self.ids)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the view: epochs cycle through them. Running workers follow.

        Raises:
            ValueError: it is negative.
        """
        if epoch < 0:
            raise ValueError(f"the epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> FeatureSample:
        """The features of the image at an index.

        Raises:
            IndexError: the index is out of range.
            FeatureCacheError: its shard is now missing or damaged.
        """
        place = range(len(self))[operator.index(index)]
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        row = place - int(self._starts[shard])
        view = int(self._epoch) % self.views
        if (view, shard) not in self._shards:
            self._shards[view, shard] = Shard(self.folder, self.manifest, view, shard)
        features = self._shards[view, shard].row(row, self.keys)
        label = int(self.labels[place]) if self.targets is None else torch.from_numpy(np.asarray(self.targets[place]))
        return FeatureSample(features, label, int(self.ids[place]))

    def shard_numbers(self, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) ids and (n,) labels of the images in a shard."""
        rows = slice(int(self._starts[shard]), int(self._starts[shard + 1]))
        return self.ids[rows], self.labels[rows]

    def verify(self, done: Callable[[int], object] | None = None) -> None:
        """Reads everything and compares it with the stored digests.

        Args:
            done: is called with the number of images after each shard.

        Raises:
            FeatureCacheError: a shard is damaged or missing; the message names it.
        """
        for view in range(self.views):
            for number in range(self.manifest.num_shards):
                shard = Shard(self.folder, self.manifest, view, number)
                shard.verify()
                if done is not None:
                    done(shard.rows)

    def _read_numbers(self) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
        """Labels and ids of each shard, which are those of the first view."""
        labels, ids = [], []
        for number in range(self.manifest.num_shards):
            parts = [Shard(self.folder, self.manifest, view, number).numbers() for view in range(self.views)]
            for view, part in enumerate(parts):
                if not all(torch.equal(a, b) for a, b in zip(part, parts[0], strict=True)):
                    raise FeatureCacheError(
                        f"{shard_path(self.folder, view, number)} holds other images than view 0: some could be read "
                        f"at one time and not at another; remove the shards {number:05} of all views and extract again"
                    )
            labels.append(parts[0][0].numpy())
            ids.append(parts[0][1].numpy())
        return labels, ids
