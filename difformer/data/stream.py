"""Shards as a stream that processes and workers share, each sample exactly once."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from difformer.data.images import Content
from difformer.data.samples import Sample, SampleReader, dataset_repr
from difformer.data.subset import LabelSubset
from difformer.streams import Stream, generator


class ShardDataset(IterableDataset[Sample]):
    """The samples of shards, in a stream.

    The samples of all shards form one line. Each process takes a piece of it, and each worker of a data loader a piece
    of that; the pieces of processes differ by one sample at most. So nothing is dropped or doubled, however few the
    shards are, and a shard is read by few. With shuffling, the shards come in a new order each epoch, and the next
    sample is drawn from a buffer; the order is a function of seed, epoch and the numbers of processes and workers.

    The stream divides itself: a data loader for it must not be divided again (Accelerate's `prepare` would).

    Args:
        reader: reads the full split, whose source has shards.
        indices: places in the full split to read.
        shuffle_buffer: samples to choose the next from; 0 keeps the order of the shards.
        process_index: which process this is; asked of torch.distributed when None (0 where that is not running).
        num_processes: how many there are; the same.
        subset: the label subset that chose the indices.

    Raises:
        ValueError: a process index that is not in [0, num_processes), or only one of the two.
    """

    def __init__(
        self,
        reader: SampleReader,
        indices: NDArray[np.int64],
        *,
        shuffle_buffer: int = 0,
        process_index: int | None = None,
        num_processes: int | None = None,
        subset: LabelSubset | None = None,
    ) -> None:
        self._reader = reader
        self._indices = np.sort(indices)
        self._shuffle_buffer = shuffle_buffer
        self.subset = subset
        self.process_index, self.num_processes = _processes(process_index, num_processes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._reader.source.class_names

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) of all processes, in the order of the shards."""
        return self._reader.source.labels[self._indices]

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) of all processes, in the order of the shards."""
        return self._reader.source.ids[self._indices]

    @property
    def skipped(self) -> NDArray[np.int64]:
        """Ids of the images that could not be read so far, in this process and its workers."""
        return self._reader.skipped.numpy()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of augmentation and order, in running workers too, from their next pass on.

        Raises:
            ValueError: it is negative or no integer.
        """
        self._reader.set_epoch(epoch)

    def __len__(self) -> int:
        """Samples of this process. With several workers, a data loader gives more batches than this and the batch size
        make, since each worker ends with a batch of its own.
        """
        start, stop = _piece(len(self._indices), self.process_index, self.num_processes)
        return stop - start

    def __repr__(self) -> str:
        process = f", process {self.process_index} of {self.num_processes}" if self.num_processes > 1 else ""
        return dataset_repr(self, self._reader.source.title + process)

    def __iter__(self) -> Iterator[Sample]:
        """The samples of this worker of this process."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first, last = _piece(len(self._indices), self.process_index, self.num_processes)
        start, stop = _piece(last - first, number, workers)
        mine = self._line()[first + start : first + stop]
        for index, content in self._shuffled(mine.tolist(), number):
            sample = self._reader.read(index, content)
            if sample is not None:
                yield sample

    def _line(self) -> NDArray[np.int64]:
        """All samples in the order in which the processes share them."""
        shards = self._reader.source.shards
        if not self._shuffle_buffer or shards is None:
            return self._indices
        rng = generator(Stream.SHARDS, self._reader.seed, self._reader.epoch)
        rank = np.argsort(rng.random(int(shards.max()) + 1))
        return self._indices[np.argsort(rank[shards[self._indices]], kind="stable")]

    def _shuffled(self, indices: list[int], worker: int) -> Iterator[tuple[int, Content]]:
        """Reads ahead, still encoded, and gives back at random; without a buffer, in order."""
        source = self._reader.source
        contents = map(source.content, indices) if source.in_order is None else source.in_order(indices)
        rng = generator(Stream.BUFFER, self._reader.seed, self._reader.epoch, self.process_index, worker)
        buffer: list[tuple[int, Content]] = []
        for item in zip(indices, contents, strict=True):
            buffer.append(item)
            if len(buffer) > self._shuffle_buffer:
                place = int(rng.integers(len(buffer)))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()
        yield from (buffer[i] for i in rng.permutation(len(buffer)))


def _piece(length: int, number: int, pieces: int) -> tuple[int, int]:
    """Where the piece of that number begins and ends."""
    return length * number // pieces, length * (number + 1) // pieces


def _processes(index: int | None, count: int | None) -> tuple[int, int]:
    if (index is None) != (count is None):
        raise ValueError("give both process_index and num_processes, or neither")
    if index is None or count is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    if not 0 <= index < count:
        raise ValueError(f"process_index must lie in [0, {count}), got {index}")
    return index, count
