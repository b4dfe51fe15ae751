"""Logits or features for every image of a split, each exactly once for any number of processes."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from difformer.data import moved
from difformer.engine.config.recipe import BatchSize, as_batch_size
from difformer.engine.runtime.batch_size import fastest_batch_size, most_at_once
from difformer.engine.runtime.batches import create_loader, inputs_of
from difformer.engine.runtime.processes import gathered, on_all
from difformer.engine.runtime.progress import progress_bar
from difformer.features.conditioning import Conditioning
from difformer.tasks import DenseTask, Outputs, Task
from difformer.tasks.registry import is_dense


class _InOrder:
    """The batches of one process.

    Args:
        share: its places in the data set.
        size: images at once; may differ from that of other processes.
    """

    def __init__(self, share: Sequence[int], size: int) -> None:
        self._batches = [list(share[i : i + size]) for i in range(0, len(share), size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    dataset: Any,
    collate: Any,
    accelerator: Any,
    *,
    batch_size: BatchSize,
    workers: int = 0,
    progress: bool = False,
    title: str = "evaluating",
    task: Task | None = None,
    names: Sequence[str] = (),
) -> Outputs:
    """Runs a model on a split, in evaluation mode.

    Args:
        model: maps a batch and ids to logits or features (B, D), on the accelerator's device; not wrapped for
            several processes. If it has an `extractor` whose features are conditioned on labels, it gets these too.
        dataset: images, or features.
        collate: makes a batch of its samples, or None if none of the images can be read.
        accelerator: Accelerate's; every process gets the whole result.
        batch_size: images at once, over all processes; `auto` for the fastest size, which each process finds for
            itself. Changes rounding only. Images that keep their sizes are read one by one.
        workers: of the data loader.
        progress: show a bar.
        title: of the bar.
        task: a dense one keeps what its `score` gives of each image in place of the model's outputs.
        names: of the outputs, for such a task.

    Raises:
        ValueError: the batch size is neither a positive integer nor `auto`.
        ImageError: an image cannot be read, and unreadable images are not skipped.
        RuntimeError: images were lost or counted twice.
    """
    size = as_batch_size("batch_size", batch_size)
    dense = task if is_dense(task) else None
    reading = _Reading(model, dataset, collate, accelerator, dense, names)
    training = model.training
    hidden = not (progress and accelerator.is_main_process)
    model.eval()
    try:
        with progress_bar(len(dataset), title, disable=hidden, leave=False) as bar:
            found = on_all(accelerator, partial(reading.own_share, size, workers, bar))
    finally:
        model.train(training)
    everywhere = gathered(accelerator, found)
    if not everywhere:
        raise RuntimeError("there is no image to evaluate")
    values, labels, ids = (np.concatenate([part[i] for part in everywhere]) for i in range(3))
    skipped = sorted(set(gathered(accelerator, getattr(dataset, "skipped", np.empty(0, dtype=np.int64)).tolist())))
    every_id = np.asarray(dataset.ids)
    expected = every_id[~np.isin(every_id, skipped)]
    if not np.array_equal(ids, expected):
        raise RuntimeError(f"{len(expected)} images were to be evaluated, but {len(ids)} were, or not the same ones")
    return Outputs(values, labels, ids, tuple(skipped))


class _Reading:
    """The arguments of `evaluate` on one process, which reads a contiguous piece of the data set."""

    def __init__(
        self,
        model: torch.nn.Module,
        dataset: Any,
        collate: Any,
        accelerator: Any,
        task: DenseTask | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self._task = task
        self._names = names
        self._model = model
        self._dataset = dataset
        self._collate = collate
        self._accelerator = accelerator
        index, count = accelerator.process_index, accelerator.num_processes
        self._share = range(*(len(dataset) * number // count for number in (index, index + 1)))

    def own_share(self, batch_size: BatchSize, workers: int, bar: Any) -> list[tuple[NDArray[Any], ...]]:
        """Values, labels and ids of this process's batches."""
        processes, device = self._accelerator.num_processes, self._accelerator.device
        if getattr(self._dataset, "keeps_sizes", False):
            size = 1
        elif batch_size == "auto":
            # Batches of one image, repeated: its content does not change the time, and reading many would take longer.
            first = next((sample for place in self._share if (sample := self._dataset[place]) is not None), None)
            most = most_at_once(len(self._share), device)
            work = self._values if self._task is None else partial(self._scores, self._task)
            size = 1 if first is None else fastest_batch_size(lambda n: self._collate([first] * n), work, most)
        else:
            size = max(1, batch_size // processes)
        batches = _InOrder(self._share, size)
        found: list[tuple[NDArray[Any], ...]] = []
        for batch in create_loader(self._dataset, batches, self._collate, workers, pin=device.type == "cuda"):
            if batch is None:
                continue
            values: NDArray[Any]
            if self._task is None:
                values, labels = self._values(batch), batch.labels.numpy()
            else:
                values, labels = self._scores(self._task, batch), np.zeros(len(batch.ids), dtype=np.int64)
            found.append((values, labels, batch.ids.numpy()))
            bar.update(len(batch.ids) * processes)
        return found

    def _scores(self, task: DenseTask, batch: Any) -> NDArray[np.object_]:
        """What a dense task keeps of each image."""
        images, device = batch.images.to(self._accelerator.device), self._accelerator.device
        with self._accelerator.autocast():
            found = task.infer(self._model, images, batch.ids.to(device), batch.origins)
        kept = np.empty(len(found), dtype=object)
        for place, (prediction, origin) in enumerate(zip(found, batch.origins, strict=True)):
            kept[place] = task.score(prediction, moved(origin.target, device), self._names)
        return kept

    def _values(self, batch: Any) -> NDArray[np.float32]:
        """The model's outputs for a batch; the copy to the CPU waits for the device."""
        inputs, labels, ids = inputs_of(batch, self._accelerator.device)
        conditioning = getattr(getattr(self._model, "extractor", None), "conditioning", Conditioning())
        told = conditioning.by_label(labels)
        with self._accelerator.autocast():
            values: torch.Tensor = self._model(inputs, ids, **told)
        return values.float().cpu().numpy()
