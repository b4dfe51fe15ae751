"""The images of each step and each process's share of them: a function of seed, epoch and data only."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from difformer.data import Batch, DenseBatch, moved
from difformer.engine.config.recipe import LoopConfig
from difformer.streams import Stream, generator

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The images that a process passes through the model at once.

    Attributes:
        indices: places in the data set.
        counts: false for a stand-in, where a process's share of the batch is too small: its loss does not count, but
            all processes must run the same number of parts.
    """

    indices: tuple[int, ...]
    counts: bool = True


def epoch_order(
    length: int, seed: int, epoch: int, *, shards: Indices | None = None, shuffle_buffer: int = 1000
) -> Indices:
    """A random order of a data set for one epoch.

    With shards, samples come shard by shard in a random order of shards, and each sample is then moved by up to
    `shuffle_buffer` places, so that reading stays local.

    Args:
        length: number of images.
        seed, epoch: not negative; what the order depends on.
        shards: (length,) the shard of each image, where there are shards.
        shuffle_buffer: how far to move samples, with shards.

    Returns:
        (length,) places in the data set.
    """
    rng = generator(Stream.ORDER, seed, epoch)
    if shards is None:
        return rng.permutation(length)
    rank = rng.permutation(int(shards.max()) + 1)
    line = np.argsort(rank[shards], kind="stable")
    return line[np.argsort(np.arange(length) + rng.random(length) * shuffle_buffer)]


def divide(batch: Sequence[int] | Indices, process_index: int, num_processes: int, accumulation: int) -> list[Part]:
    """A process's share of a batch, in at most `accumulation` parts. All processes have the same number of parts, since
    they wait for each other in each part (for gradients, and for batch statistics).
    """
    places = np.asarray(batch)
    share = np.array_split(places, num_processes)[process_index]
    count = min(accumulation, -(-len(places) // num_processes))
    stand_in = Part((int(places[0]),), counts=False)
    return [Part(tuple(part.tolist())) if len(part) else stand_in for part in np.array_split(share, count)]


class EpochBatches(Sampler[list[int]]):
    """The parts of one process, step by step; a data loader's `batch_sampler`.

    After `set`, the next pass over the loader follows the new epoch and step, even with workers that are running.

    Args:
        batch_size: images per step, over all processes.
        process_index, num_processes: which process this is, and how many there are.
        accumulation: parts into which a share is divided.
    """

    def __init__(self, batch_size: int, process_index: int = 0, num_processes: int = 1, accumulation: int = 1) -> None:
        self.batch_size = batch_size
        self._division = (process_index, num_processes, accumulation)
        self._order: Indices = np.empty(0, dtype=np.int64)
        self._first = 0

    def set(self, order: Indices, first_step: int = 0) -> None:
        """Args: the places in the data set in the epoch's order, and the first step that remains to be done."""
        self._order = order
        self._first = first_step

    @property
    def steps(self) -> int:
        """Steps of a whole epoch."""
        return -(-len(self._order) // self.batch_size)

    def size(self, number: int) -> int:
        """Images of a step, over all processes."""
        return min(self.batch_size, len(self._order) - number * self.batch_size)

    def step(self, number: int) -> list[Part]:
        """The parts of a step."""
        start = number * self.batch_size
        return divide(self._order[start : start + self.batch_size], *self._division)

    def __len__(self) -> int:
        return sum(len(self.step(number)) for number in range(self._first, self.steps))

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self._first, self.steps):
            for part in self.step(number):
                yield list(part.indices)


def shares_statistics(accelerator: Any) -> bool:
    """Whether processes can share batch statistics, which torch supports on GPUs."""
    return accelerator.num_processes > 1 and accelerator.device.type == "cuda"


def check_batch_statistics(
    module: nn.Module, images: int, loop: LoopConfig, accelerator: Any, *, shared: bool = False
) -> None:
    """Refuses parts of one image for layers that normalise over images, which would fail in the last step.

    Args:
        module: what learns.
        images: number in the training split.
        loop: gives batch size and accumulation.
        accelerator: Accelerate's; its processes share a batch.
        shared: whether statistics are over all processes where that is supported; then no part is too small.

    Raises:
        ValueError: batch statistics would be computed from a single image.
    """
    if shared and shares_statistics(accelerator):
        return
    num_processes = accelerator.num_processes
    last = images % loop.batch_size or loop.batch_size
    parts = (
        divide(range(size), process, num_processes, loop.accumulation)
        for size in {min(images, loop.batch_size), last}
        for process in range(num_processes)
    )
    alone = any(len(part.indices) == 1 for share in parts for part in share)
    head = getattr(module, "head", module)
    normed = any(isinstance(layer, nn.BatchNorm1d) for layer in module.modules())
    if alone and getattr(head, "needs_several_images", normed):
        raise ValueError(
            f"the {images} images leave a process one at a time, and batch norm has no statistics of one image; "
            f"choose another training.batch_size or training.accumulation, or for upernet head.arguments.norm: group"
        )


def create_loader(dataset: Dataset[Any], batches: Any, collate: Any, workers: int, *, pin: bool) -> DataLoader[Any]:
    """A data loader whose workers stay for all epochs and leave signals to the parent process."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals,
        pin_memory=pin,
        # For the workers' seeds, on which no sample depends; the default is the global generator.
        generator=torch.Generator(),
    )


def inputs_of(batch: Any, device: torch.device) -> tuple[Any, Any, Tensor]:
    """Inputs, labels and ids of a `Batch` or `DenseBatch` of images or a `FeatureBatch`, moved to a device."""
    ids = batch.ids.to(device, non_blocking=True)
    if isinstance(batch.labels, Tensor):
        labels: Any = batch.labels.to(device, non_blocking=True)
    else:
        labels = tuple(moved(target, device) for target in batch.labels)
    if isinstance(batch, Batch | DenseBatch):
        return batch.images.to(device, non_blocking=True), labels, ids
    return {key: value.to(device, non_blocking=True) for key, value in batch.features.items()}, labels, ids


def _leave_signals(worker: int) -> None:
    # Signals often reach the whole process group; the parent finishes its step first and then ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if hasattr(os, "setsid"):
        os.setsid()
