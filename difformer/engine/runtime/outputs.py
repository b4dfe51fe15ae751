"""Logits or features for every image of a split, each exactly once however many processes share them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from difformer.engine.config.recipe import BatchSize, as_batch_size
from difformer.engine.runtime.batch_size import fastest_batch_size, most_at_once
from difformer.engine.runtime.batches import create_loader, inputs_of
from difformer.engine.runtime.processes import gathered, on_all
from difformer.engine.runtime.progress import progress_bar
from difformer.features.conditioning import Conditioning
from difformer.tasks import Outputs


class _InOrder:
    """The batches of one process.

    Args:
        share: its places in the data set.
        size: images at once; need not be that of the other processes.
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
) -> Outputs:
    """Runs a model on a split, in evaluation mode.

    Args:
        model: batch and ids to logits or features (B, D), on the accelerator's device; not divided over processes
            itself. Where it has an `extractor` whose features are conditioned on labels, it is given these too.
        dataset: images, or features.
        collate: makes a batch of its samples; None of those that hold no image that can be read.
        accelerator: Accelerate's; every process gets the whole result.
        batch_size: images at once, over all processes; `auto` for as many as go through fastest, which each process
            finds for itself. Changes rounding only.
        workers: of the data loader.
        progress: show a bar.
        title: of the bar.

    Raises:
        ValueError: a batch size that is neither.
        ImageError: an image cannot be read, and such are not to be skipped.
        RuntimeError: images were lost or counted twice.
    """
    size = as_batch_size("batch_size", batch_size)
    reading = _Reading(model, dataset, collate, accelerator)
    training = model.training
    model.eval()
    try:
        shown = progress and accelerator.is_main_process
        with progress_bar(len(dataset), title, disable=not shown, leave=False) as bar:
            found = on_all(accelerator, partial(reading.own_share, size, workers, bar))
    finally:
        model.train(training)
    return _gather(found, dataset, accelerator)


class _Reading:
    """What `evaluate` is called with, on one process, which has a contiguous piece of the data set."""

    def __init__(self, model: torch.nn.Module, dataset: Any, collate: Any, accelerator: Any) -> None:
        self._model = model
        self._dataset = dataset
        self._collate = collate
        self._accelerator = accelerator
        index, count = accelerator.process_index, accelerator.num_processes
        self._share = range(*(len(dataset) * number // count for number in (index, index + 1)))

    def own_share(self, batch_size: BatchSize, workers: int, bar: Any) -> list[tuple[NDArray[Any], ...]]:
        """Values, labels and ids of this process's batches."""
        processes, device = self._accelerator.num_processes, self._accelerator.device
        size = self._fastest() if batch_size == "auto" else max(1, batch_size // processes)
        batches = _InOrder(self._share, size)
        found: list[tuple[NDArray[Any], ...]] = []
        for batch in create_loader(self._dataset, batches, self._collate, workers, pin=device.type == "cuda"):
            if batch is None:
                continue
            found.append((self._values(batch), batch.labels.numpy(), batch.ids.numpy()))
            bar.update(len(batch.ids) * processes)
        return found

    def _fastest(self) -> int:
        # One image as often as a batch is to hold: what is in it takes no time, and reading many would.
        first = next((sample for place in self._share if (sample := self._dataset[place]) is not None), None)
        if first is None:
            return 1
        most = most_at_once(len(self._share), self._accelerator.device)
        return fastest_batch_size(lambda size: self._collate([first] * size), self._values, most)

    def _values(self, batch: Any) -> NDArray[np.float32]:
        """Passes a batch; the copy to the CPU waits for the device."""
        inputs, labels, ids = inputs_of(batch, self._accelerator.device)
        conditioning = getattr(getattr(self._model, "extractor", None), "conditioning", Conditioning())
        told = conditioning.by_label(labels)
        with self._accelerator.autocast():
            values: torch.Tensor = self._model(inputs, ids, **told)
        return values.float().cpu().numpy()


def _gather(found: list[tuple[NDArray[Any], ...]], dataset: Any, accelerator: Any) -> Outputs:
    everywhere = gathered(accelerator, found)
    if not everywhere:
        raise RuntimeError("there is no image to evaluate")
    values, labels, ids = (np.concatenate([part[i] for part in everywhere]) for i in range(3))
    skipped = sorted(set(gathered(accelerator, getattr(dataset, "skipped", np.empty(0, dtype=np.int64)).tolist())))
    everyone = np.asarray(dataset.ids)
    expected = everyone[~np.isin(everyone, skipped)]
    if not np.array_equal(ids, expected):
        raise RuntimeError(f"{len(expected)} images were to be evaluated, but {len(ids)} were, or not the same ones")
    return Outputs(values, labels, ids, tuple(skipped))
