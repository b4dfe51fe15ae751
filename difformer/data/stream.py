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
        process_index: which process this is; read from torch.distributed when None (0 where that is not running).
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
        if (process_index is None) != (num_processes is None):
            raise ValueError("give both process_index and num_processes, or neither")
        if process_index is None or num_processes is None:
            process_index, num_processes = 0, 1
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                process_index, num_processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must lie in [0, {num_processes}), got {process_index}")
        self.process_index, self.num_processes = process_index, num_processes

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
        """Samples of this process. With several workers, a data loader gives more batches than these samples fill: each
        worker ends with its own batch.
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
        # All samples, in the order in which the processes share them.
        line, shards = self._indices, self._reader.source.shards
        if self._shuffle_buffer and shards is not None:
            rng = generator(Stream.SHARDS, self._reader.seed, self._reader.epoch)
            rank = np.argsort(rng.random(int(shards.max()) + 1))
            line = line[np.argsort(rank[shards[line]], kind="stable")]
        mine = line[first + start : first + stop]
        for index, content in self._shuffled(mine.tolist(), number):
            sample = self._reader.read(index, content)
            if sample is not None:
                yield sample

    def _shuffled(self, indices: list[int], worker: int) -> Iterator[tuple[int, Content]]:
        """Reads encoded images ahead, and gives them in random order; without a buffer, in their order."""
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
