"""The training loop: steps, epochs, saving and going on."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difformer._optional import require
from difformer.data.images import stable_id
from difformer.engine.batches import EpochBatches, Part, create_loader, epoch_order
from difformer.engine.build import epoch_seed
from difformer.engine.model import TrainedParts, Trainee, inputs_of
from difformer.engine.optimisation import Mixing, create_optimizer, create_schedule
from difformer.engine.recipe import Recipe
from difformer.engine.state import Progress, TrainingState
from difformer.engine.stopping import StopRequest


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped, and the last saved state is whole."""


class DivergedError(TrainingError):
    """The loss is not finite."""


@dataclass(frozen=True)
class Totals:
    """Sums over the images of a step or an epoch, over all processes."""

    loss_sum: float
    correct: int
    counted: int
    stop: bool


class Trainer:
    """Trains a classifier's head, and its feedback layers, on a data set.

    A step is a function of the state before it, the recipe and the data: order, augmentation, noise and dropout are
    drawn from seeds that depend on epoch and step. So a run that was interrupted ends as one that was not.

    Args:
        recipe: how.
        accelerator: Accelerate's.
        classifier: trained in place.
        dataset: training images, or features.
        collate: makes a batch of the data set's samples.

    Attributes:
        trainee: batch to logits, on this process alone.
        parts: what is trained.
        steps: an epoch.
        progress: how far it is.
        averaged: moving average of the weights, by name, where the recipe asks for one.
    """

    def __init__(self, recipe: Recipe, accelerator: Any, classifier: Any, dataset: Any, collate: Any) -> None:
        training = recipe.training
        self.recipe = recipe
        self.accelerator = accelerator
        self.extractor = classifier.extractor
        self.dataset = dataset
        self.parts = TrainedParts(classifier)
        self.progress = Progress()
        on_features = recipe.features == "cached"
        self.mixing = Mixing(training, len(classifier.class_names))
        self.batches = EpochBatches(
            training.batch_size, accelerator.process_index, accelerator.num_processes, training.accumulation
        )
        self.batches.set(self._order(0))
        self.steps = self.batches.steps
        self.loader = create_loader(
            dataset, self.batches, collate, training.workers, pin=accelerator.device.type == "cuda"
        )
        trainee: torch.nn.Module = Trainee(classifier, on_features=on_features)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda" and training.sync_batch_norm:
            trainee = torch.nn.SyncBatchNorm.convert_sync_batchnorm(trainee)
        optimizer = create_optimizer(trainee, recipe.optimizer)
        self.set_rate = create_schedule(optimizer, recipe.schedule, training.epochs, self.steps)
        self.trainee = trainee
        self.model, self.optimizer = accelerator.prepare(trainee, optimizer)
        self.averaged = self.parts.snapshot() if training.ema else None

    def restore(self, state: TrainingState, source: str) -> None:
        """Goes on where a saved state stopped.

        Raises:
            CheckpointError: its weights are of another model.
        """
        self.parts.restore(state.weights, source)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.averaged = state.averaged
        self.progress = state.progress

    def state(self, data_digest: str, plain_recipe: dict[str, Any], history: list[dict[str, Any]]) -> TrainingState:
        """What `restore` needs, on the CPU."""
        scaler = self.accelerator.scaler
        return TrainingState(
            recipe=plain_recipe,
            data_digest=data_digest,
            progress=self.progress,
            weights=self.parts.snapshot(),
            optimizer=self.optimizer.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            averaged=self.averaged,
            history=history,
        )

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def run_epoch(self, stop: StopRequest, after_step: Callable[[Totals], None], *, until: int | None = None) -> bool:
        """Trains to the end of the current epoch, from the step it is at.

        Args:
            stop: noticed between steps, by all processes at the same one.
            after_step: called with each step's sums.
            until: the step to end before, in place of the end of the epoch.

        Returns:
            Whether the end was reached; false after a request to stop.

        Raises:
            TrainingError: the loss is not finite, or a data worker died.
        """
        progress = self.progress
        self.dataset.set_epoch(progress.epoch)
        self.extractor.seed = epoch_seed(self.recipe.extractor.seed, progress.epoch)
        self.batches.set(self._order(progress.epoch), progress.step)
        self.model.train()
        last = self.steps if until is None else min(until, self.steps)
        batches = self._loaded(iter(self.loader)) if progress.step < last else iter(())
        while progress.step < last:
            totals = self._step(batches, stop)
            progress.step += 1
            progress.images += totals.counted
            progress.loss_sum += totals.loss_sum
            progress.correct += totals.correct
            progress.counted += totals.counted
            after_step(totals)
            if totals.stop:
                return False
        return True

    def _step(self, batches: Iterator[Any], stop: StopRequest) -> Totals:
        number = self.progress.epoch * self.steps + self.progress.step
        self.set_rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.batches.step(self.progress.step)
        size = self._batch_length(self.progress.step)
        sums = torch.zeros(4, dtype=torch.float64, device=self.accelerator.device)
        with self._own_randomness(number):
            for place, part in enumerate(parts):
                batch = next(batches)
                last = place == len(parts) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.model):
                    sums[:3] += self._forward_backward(batch, part, size, number, place)
        sums[3] = float(stop.signal_seen() is not None)
        total = self.accelerator.reduce(sums, "sum").tolist()
        if not math.isfinite(total[0]):
            self._refuse_loss(total[0], parts)
        if self.recipe.optimizer.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm)
        self.optimizer.step()
        self._average()
        return Totals(total[0], round(total[1]), round(total[2]), total[3] > 0)

    def _forward_backward(self, batch: Any, part: Part, size: int, number: int, place: int) -> Tensor:
        """Adds the gradient of one part; returns its loss, correct answers and images, (3,) float64."""
        inputs, labels, ids = inputs_of(batch, self.accelerator.device)
        targets = labels
        if isinstance(inputs, Tensor):
            inputs, targets = self.mixing(inputs, labels, number, self.accelerator.process_index, place)
        logits = self.model(inputs, ids)
        loss = F.cross_entropy(
            logits.float(), targets, label_smoothing=self.recipe.training.label_smoothing, reduction="sum"
        )
        if not part.counts:
            loss = 0 * loss
        # Gradients are averaged over processes, which have different shares of the batch.
        self.accelerator.backward(loss * self.accelerator.num_processes / size)
        correct = (logits.argmax(dim=1) == labels).sum()
        return torch.stack([loss.detach().double(), correct.double(), correct.new_tensor(len(labels)).double()]) * (
            1.0 if part.counts else 0.0
        )

    def _average(self) -> None:
        decay = self.recipe.training.ema
        if decay is None or self.averaged is None:
            return
        for name, tensor in self.parts.state_dict().items():
            kept = self.averaged[name]
            now = tensor.detach().to(kept.device)
            if kept.is_floating_point():
                kept.lerp_(now, 1 - decay)
            else:
                kept.copy_(now)

    def _order(self, epoch: int) -> Any:
        shards = getattr(self.dataset, "shards", None)
        buffer = self.recipe.data.shuffle_buffer
        seed = self.recipe.training.seed
        return epoch_order(len(self.dataset), seed, epoch, shards=shards, shuffle_buffer=buffer)

    def _batch_length(self, step: int) -> int:
        return min(self.batches.batch_size, len(self.dataset) - step * self.batches.batch_size)

    def _own_randomness(self, number: int) -> Any:
        """Dropout draws from a generator of the step; the global ones stay as they are."""
        return seeded(
            self.accelerator.device, "step", self.recipe.training.seed, number, self.accelerator.process_index
        )

    def _loaded(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a data worker died in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}: {error}; the "
                f"same command goes on from the last saved state (training.workers 0 shows more)"
            ) from error

    def _refuse_loss(self, loss: float, parts: list[Part]) -> None:
        places = np.concatenate([part.indices for part in parts])
        ids = np.asarray(self.dataset.ids)[places][:16].tolist()
        raise DivergedError(
            f"the loss is {loss} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, with the images of "
            f"ids {ids}{' …' if len(places) > 16 else ''}; the weights were not changed. Try a lower optimizer.lr, "
            f"optimizer.clip_norm, or training.precision no; the last saved state is whole"
        )


def seeded(device: torch.device, *key: int | str) -> Any:
    """A context in which torch's generators are seeded from a key, and after which they are as before."""
    return _Seeded(device, stable_id(" ".join(map(str, key)).encode()))


class _Seeded:
    def __init__(self, device: torch.device, seed: int) -> None:
        self._fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        self._seed = seed

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def progress_bar(total: int, done: int, *, shown: bool) -> Any:
    """A bar over images, with the rate and the time left."""
    return require("tqdm", "the progress bar").tqdm(
        total=total, initial=done, unit="image", unit_scale=True, disable=not shown, smoothing=0.1
    )


class Clock:
    """Seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self._start = now - self._start, now
        return seconds
