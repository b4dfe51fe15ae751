"""Logits or features for every image of a split, each exactly once however many processes share them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from difformer._optional import require
from difformer.engine.classification.trainee import inputs_of
from difformer.engine.loop.batches import create_loader
from difformer.engine.processes import on_all


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model gives for a split.

    Attributes:
        values: (N, D) float32 logits or features, in the order of the data set.
        labels: (N,) int64.
        ids: (N,) int64.
        skipped: ids of the images that could not be read, which are not among the N.
    """

    values: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    skipped: tuple[int, ...] = ()


class _InOrder:
    """The batches of one process: a contiguous piece of the data set."""

    def __init__(self, length: int, size: int, process_index: int, num_processes: int) -> None:
        start, stop = (length * number // num_processes for number in (process_index, process_index + 1))
        self._batches = [list(range(i, min(i + size, stop))) for i in range(start, stop, size)]

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
    batch_size: int,
    workers: int = 0,
    progress: bool = False,
    title: str = "evaluating",
) -> Outputs:
    """Runs a model on a split, in evaluation mode.

    Args:
        model: batch and ids to logits or features (B, D), on the accelerator's device; not divided over processes
            itself.
        dataset: images, or features.
        collate: makes a batch of its samples; None of those that hold no image that can be read.
        accelerator: Accelerate's; every process gets the whole result.
        batch_size: images at once, over all processes.
        workers: of the data loader.
        progress: show a bar.
        title: of the bar.

    Raises:
        ImageError: an image cannot be read, and such are not to be skipped.
        RuntimeError: images were lost or counted twice.
    """
    size = max(1, batch_size // accelerator.num_processes)
    batches = _InOrder(len(dataset), size, accelerator.process_index, accelerator.num_processes)
    loader = create_loader(dataset, batches, collate, workers, pin=accelerator.device.type == "cuda")
    training = model.training
    model.eval()
    try:
        with _bar(len(dataset), title, shown=progress and accelerator.is_main_process) as bar:
            found = on_all(accelerator, partial(_own_share, model, loader, accelerator, bar))
    finally:
        model.train(training)
    return _gather(found, dataset, accelerator)


def _own_share(model: torch.nn.Module, loader: Any, accelerator: Any, bar: Any) -> list[tuple[NDArray[Any], ...]]:
    """Values, labels and ids of this process's batches."""
    found: list[tuple[NDArray[Any], ...]] = []
    for batch in loader:
        if batch is None:
            continue
        inputs, _, ids = inputs_of(batch, accelerator.device)
        with accelerator.autocast():
            values = model(inputs, ids).float()
        found.append((values.cpu().numpy(), batch.labels.numpy(), batch.ids.numpy()))
        bar.update(len(ids) * accelerator.num_processes)
    return found


def _gather(found: list[tuple[NDArray[Any], ...]], dataset: Any, accelerator: Any) -> Outputs:
    gather_object = require("accelerate.utils", "evaluation", install="accelerate").gather_object
    everywhere = gather_object(found) if accelerator.num_processes > 1 else found
    if not everywhere:
        raise RuntimeError("there is no image to evaluate")
    values, labels, ids = (np.concatenate([part[i] for part in everywhere]) for i in range(3))
    skipped = getattr(dataset, "skipped", np.empty(0, dtype=np.int64)).tolist()
    if accelerator.num_processes > 1:
        skipped = sorted(set(gather_object(skipped)))
    everyone = np.asarray(dataset.ids)
    expected = everyone[~np.isin(everyone, skipped)]
    if not np.array_equal(ids, expected):
        raise RuntimeError(f"{len(expected)} images were to be evaluated, but {len(ids)} were, or not the same ones")
    return Outputs(values, labels, ids, tuple(skipped))


def _bar(total: int, title: str, *, shown: bool) -> Any:
    return require("tqdm", "the progress bar").tqdm(
        total=total, unit="image", desc=title, disable=not shown, leave=False
    )
