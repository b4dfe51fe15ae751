"""The training loop: steps, saving and resuming, for any objective."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from difformer.engine.config.recipe import LoopConfig, OptimizerConfig, ScheduleConfig
from difformer.engine.loop.optimisation import create_optimizer, create_schedule
from difformer.engine.loop.state import Progress, TrainingState, restore, snapshot
from difformer.engine.runtime.batches import (
    EpochBatches,
    Part,
    check_batch_statistics,
    create_loader,
    epoch_order,
    shares_statistics,
)
from difformer.engine.runtime.stopping import StopRequest
from difformer.streams import stable_id

# Remedies against values that are not finite.
_CALMER = "Try a lower optimizer.lr, optimizer.clip_norm, or training.precision no"


class TrainingError(RuntimeError):
    """Training cannot continue; the message says where it stopped, and the last saved state is whole."""


class DivergedError(TrainingError):
    """The loss is not finite."""


@dataclass(frozen=True)
class Place:
    """Where in a run a batch is.

    Attributes:
        step: in the whole run.
        process: index of the process.
        part: index in the process's share.
        counts: false for a stand-in, from which nothing is learned.
    """

    step: int
    process: int
    part: int
    counts: bool = True


class Objective(Protocol):
    """What is trained, and on which loss."""

    @property
    def module(self) -> nn.Module:
        """What learns; the loop passes it to `losses` after Accelerate has prepared it."""
        ...

    @property
    def parts(self) -> nn.Module:
        """The part of `module` whose weights are saved."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Called at the beginning of an epoch, and when a run resumes in the middle of one."""
        ...

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of what is counted besides the loss over an epoch's images, such as "correct"."""
        ...

    def losses(self, model: Any, batch: Any, device: torch.device, place: Place) -> tuple[Tensor, Sequence[Tensor]]:
        """(B,) losses, and the sum over the batch for each name in `counted`, which stays on the device."""
        ...

    def end_step(self) -> None:
        """Called after each step, on all processes."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it has learned besides the weights."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class Totals:
    """Sums over the images of a step, over all processes, and decisions that hold for all of them.

    Attributes:
        loss_sum: of the losses.
        counted: images.
        counts: what the objective counts, by name.
        stop: whether a process received a signal to stop.
        save: whether the last save is `save_minutes` ago.
    """

    loss_sum: float
    counted: int
    counts: Mapping[str, float]
    stop: bool
    save: bool


class Trainer:
    """Trains on a data set.

    A step is a function of the state before it, the configuration and the data: order, augmentation, noise and dropout
    are drawn from seeds that depend on epoch and step. So an interrupted run ends exactly as one without interruption.

    Args:
        objective: what is trained.
        loop, optimizer, schedule: how.
        accelerator: Accelerate's.
        dataset: has `ids`, `set_epoch` and a length.
        collate: makes a batch of the data set's samples.
        shuffle_buffer: how far samples of shards are shuffled.
        sync_batch_norm: on GPUs, batch statistics over all processes.

    Attributes:
        steps: per epoch.
        progress: how far it is.
        averaged: moving average of the weights, by name; None without `ema`.
        unsaved: clock since the last save.

    Raises:
        ValueError: as `create_optimizer` and `create_schedule`.
    """

    def __init__(
        self,
        objective: Objective,
        loop: LoopConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        accelerator: Any,
        dataset: Any,
        collate: Any,
        *,
        shuffle_buffer: int = 1000,
        sync_batch_norm: bool = False,
    ) -> None:
        self.objective = objective
        self.loop = loop
        self.accelerator = accelerator
        self.dataset = dataset
        self.progress = Progress()
        self.unsaved = Clock()
        self._shuffle_buffer = shuffle_buffer
        self._sync_batch_norm = sync_batch_norm
        self._clip_norm = optimizer.clip_norm
        cuda = accelerator.device.type == "cuda"
        self.batches = EpochBatches(
            loop.batch_size, accelerator.process_index, accelerator.num_processes, loop.accumulation
        )
        self.batches.set(self._order(0))
        self.steps = self.batches.steps
        self.loader = create_loader(dataset, self.batches, collate, loop.workers, pin=cuda)
        module = objective.module
        if sync_batch_norm and shares_statistics(accelerator):
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        # In the order of `parts`, as in saved states.
        created = create_optimizer(objective.parts, optimizer)
        self._set_rate = create_schedule(created, schedule, loop.epochs, self.steps)
        self.model, self.optimizer = accelerator.prepare(module, created)
        self.averaged = snapshot(objective.parts) if loop.ema else None

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def restore(self, state: TrainingState, source: str) -> None:
        """Resumes where a saved state stopped.

        Raises:
            CheckpointError: its weights are of another model.
        """
        restore(self.objective.parts, state.weights, source)
        self.objective.load_state_dict(state.task)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        if state.averaged is not None:
            self.averaged = {name: tensor.to(self.accelerator.device) for name, tensor in state.averaged.items()}
        self.progress = state.progress

    def state(self, recipe: dict[str, Any], sources: dict[str, str], history: list[dict[str, Any]]) -> TrainingState:
        """The state that `restore` takes.

        Raises:
            TrainingError: a weight is not finite.
        """
        scaler = self.accelerator.scaler
        weights = snapshot(self.objective.parts)
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise DivergedError(
                    f"{name} is not finite after epoch {self.progress.epoch + 1}, step {self.progress.step}: a "
                    f"gradient was not. {_CALMER}; the last saved state is whole"
                )
        return TrainingState(
            recipe=recipe,
            sources=sources,
            progress=self.progress,
            weights=weights,
            optimizer=self.optimizer.state_dict(),
            task=self.objective.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            averaged=self.averaged,
            history=history,
        )

    def run_epoch(self, stop: StopRequest, after_step: Callable[[Totals], None], *, until: int | None = None) -> bool:
        """Trains to the end of the current epoch, from the step it is at.

        Args:
            stop: noticed between steps, by all processes at the same step.
            after_step: called with each step's sums.
            until: number of the step to end before, instead of at the end of the epoch.

        Returns:
            Whether the end was reached; false after a request to stop.

        Raises:
            TrainingError: the loss is not finite, or a data worker died.
            ValueError: batch statistics would be computed from a single image.
        """
        progress = self.progress
        if until is None:
            check_batch_statistics(
                self.objective.module, len(self.dataset), self.loop, self.accelerator, shared=self._sync_batch_norm
            )
        self.dataset.set_epoch(progress.epoch)
        self.objective.begin_epoch(progress.epoch)
        self.batches.set(self._order(progress.epoch), progress.step)
        self.model.train()
        last = self.steps if until is None else min(until, self.steps)
        batches = iter(self.loader) if progress.step < last else iter(())
        while progress.step < last:
            try:
                totals = self._step(batches, stop)
            except RuntimeError as error:
                # torch raises it at any place in the process, so the weights may be those of half a step.
                if "DataLoader worker" not in str(error):
                    raise
                raise TrainingError(
                    f"a data worker died in epoch {progress.epoch + 1}, step {progress.step + 1}: {error}; the same "
                    f"command resumes from the last saved state (training.workers 0 shows more)"
                ) from error
            progress.add(totals.loss_sum, totals.counted, totals.counts)
            after_step(totals)
            if totals.stop:
                return False
        return True

    def _step(self, batches: Iterator[Any], stop: StopRequest) -> Totals:
        number = self.progress.epoch * self.steps + self.progress.step
        self._set_rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.batches.step(self.progress.step)
        # Summed on the device, and read once, after the last part.
        found: list[Tensor] = []
        # Dropout draws from generators that are seeded for the step; the global ones are put back afterwards.
        with _seeded(self.accelerator.device, "step", self.loop.seed, number, self.accelerator.process_index):
            for index, part in enumerate(parts):
                place = Place(number, self.accelerator.process_index, index, part.counts)
                last = index == len(parts) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.model):
                    found.append(self._forward_backward(next(batches), place))
        sums = sum(found[1:], found[0]).cpu().double()
        # Clocks differ; the main process's decides.
        late = self.accelerator.is_main_process and self.unsaved.seconds >= 60 * self.loop.save_minutes
        total = torch.cat([sums, sums.new_tensor([stop.signal_seen() is not None, late])])
        if self.accelerator.num_processes > 1:
            # Not every accelerator has float64.
            kind = torch.float64 if self.accelerator.device.type in ("cpu", "cuda") else torch.float32
            total = self.accelerator.reduce(total.to(self.accelerator.device, kind), "sum")
        loss_sum, counted, *counts, stopping, saving = total.tolist()
        if not math.isfinite(loss_sum):
            self._refuse_loss(loss_sum, parts if not sums[0].isfinite() else [])
        if self._clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.objective.parts.parameters(), self._clip_norm)
        self.optimizer.step()
        self._average(number)
        self.objective.end_step()
        by_name = dict(zip(self.objective.counted, counts, strict=True))
        return Totals(loss_sum, round(counted), by_name, stopping > 0, saving > 0)

    def _forward_backward(self, batch: Any, place: Place) -> Tensor:
        """Adds the gradient of one part; returns its loss, images and counts, on the device."""
        losses, counts = self.objective.losses(self.model, batch, self.accelerator.device, place)
        loss = losses.sum() if place.counts else 0 * losses.sum()
        # Gradients are averaged over processes, whose shares of the batch may differ in size.
        size = self.batches.size(self.progress.step)
        self.accelerator.backward(loss * self.accelerator.num_processes / size)
        found = [loss.detach(), losses.new_tensor(len(losses)), *counts]
        # Not every accelerator has float64.
        kind = torch.float32 if losses.device.type == "mps" else torch.float64
        summed = torch.stack([number.to(kind) for number in found])
        return summed if place.counts else torch.zeros_like(summed)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.averaged is None or self.loop.ema is None:
            return
        # Fresh weights are forgotten soon: otherwise short runs would keep a share of them.
        decay = min(self.loop.ema, (1 + step) / (10 + step))
        for name, tensor in self.objective.parts.state_dict().items():
            kept = self.averaged[name]
            if kept.is_floating_point():
                kept.lerp_(tensor, 1 - decay)
            else:
                kept.copy_(tensor)

    def _order(self, epoch: int) -> Any:
        shards = getattr(self.dataset, "shards", None)
        return epoch_order(len(self.dataset), self.loop.seed, epoch, shards=shards, shuffle_buffer=self._shuffle_buffer)

    def _refuse_loss(self, loss: float, parts: list[Part]) -> None:
        """Args: the loss over all processes, and this process's parts if its own loss is not finite."""
        places = [place for part in parts for place in part.indices]
        ids = np.asarray(self.dataset.ids)[places][:16].tolist()
        where = f"the images of ids {ids}{' …' if len(places) > 16 else ''}" if places else "another process's images"
        raise DivergedError(
            f"the loss is {loss} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, with {where}; the "
            f"weights were not changed. {_CALMER}; the last saved state is whole"
        )


class _seeded:
    """Seeds torch's generators from a key, and puts them back afterwards."""

    def __init__(self, device: torch.device, *key: int | str) -> None:
        self._fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        self._seed = stable_id(" ".join(map(str, key)).encode())

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


class Clock:
    """Measures the seconds since it was made, or since the last `lap`."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self._start = now - self._start, now
        return seconds
