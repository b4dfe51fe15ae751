"""How weights are updated: optimiser, learning rate, mixing of images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer._optional import require
from difformer.data import isolated_generators
from difformer.engine.config.recipe import OptimizerConfig, ScheduleConfig, TrainingConfig
from difformer.streams import Stream, generator

# timm calls Nesterov's variant sgd.
_TIMM_NAMES = {"sgd": "momentum"}
_WITH_MOMENTUM = ("sgd", "nesterov", "lars", "nlars", "larc", "nlarc", "rmsprop", "momentum")


def create_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """timm's optimiser for the parameters that take a gradient; biases and norms are not decayed.

    Raises:
        ValueError: timm does not know it, or there is nothing to train.
    """
    timm = require("timm.optim", "training", install="timm")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("no parameter takes a gradient; there is nothing to train")
    name = config.name.lower()
    if config.momentum and name not in _WITH_MOMENTUM:
        raise ValueError(f"optimizer.momentum is for SGD and LARS, not {config.name}; leave it at 0")
    options = {"momentum": config.momentum} if name in _WITH_MOMENTUM else {}
    try:
        optimizer: torch.optim.Optimizer = timm.create_optimizer_v2(
            module, opt=_TIMM_NAMES.get(name, name), lr=config.lr, weight_decay=config.weight_decay, **options
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"optimizer.name {config.name!r} cannot be used: {error}") from error
    return optimizer


def create_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, epochs: int, steps: int
) -> Callable[[int], None]:
    """Returns a function that sets the learning rate for a step, given its number in the whole run, counted from 0.

    Args:
        optimizer: its rates are set.
        config: the schedule.
        epochs: of the run.
        steps: per epoch.

    Raises:
        ValueError: the warm-up is not shorter than the run.
    """
    if config.warmup_epochs >= epochs:
        raise ValueError(f"schedule.warmup_epochs must be below training.epochs, {epochs}, got {config.warmup_epochs}")
    timm = require("timm.scheduler", "training", install="timm")
    if config.milestones:
        scheduler = timm.MultiStepLRScheduler(
            optimizer,
            # timm's count as reached one update before.
            decay_t=[round(epoch * steps) + 1 for epoch in config.milestones],
            decay_rate=config.gamma,
            warmup_t=config.warmup_epochs * steps,
            warmup_lr_init=0.0,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        return partial(_set_rate, scheduler, config.warmup_epochs * steps)
    # A constant rate is a step schedule whose first step comes after the end.
    step_epochs = config.step_epochs if config.name == "step" else epochs + 1
    scheduler, _ = timm.create_scheduler_v2(
        optimizer,
        sched="cosine" if config.name == "cosine" else "step",
        num_epochs=epochs,
        decay_epochs=step_epochs,
        decay_rate=config.gamma,
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return partial(_set_rate, scheduler, config.warmup_epochs * steps)


def _set_rate(scheduler: Any, warm_steps: float, step: int) -> None:
    # The rate of a warm-up's first step is above 0.
    scheduler.step_update(num_updates=step + 1 if step < warm_steps else step)


class Mixing:
    """timm's Mixup and CutMix of a batch's images, with the matching targets.

    Args:
        config: with mixup and cutmix.
        num_classes: length of the targets.
    """

    def __init__(self, config: TrainingConfig, num_classes: int) -> None:
        self._seed = config.seed
        self._num_classes = num_classes
        self._mix: Any = None
        if config.mixup or config.cutmix:
            mixup = require("timm.data.mixup", "mixup and cutmix", install="timm").Mixup
            self._mix = mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, images: Tensor, labels: Tensor, *place: int) -> tuple[Tensor, Tensor]:
        """Mixes.

        Args:
            images: (B, 3, H, W). With an odd B, the last one stays as it is.
            labels: (B,).
            place: numbers that the random choices depend on, besides the seed: step, process, part.

        Returns:
            Images, and targets: labels (B,), or probabilities (B, classes) where images are mixed.
        """
        even = len(images) - len(images) % 2
        if self._mix is None or not even:
            return images, labels
        with isolated_generators(generator(Stream.MIXING, self._seed, *place)):
            mixed, targets = self._mix(images[:even].clone(), labels[:even])
        rest = F.one_hot(labels[even:], self._num_classes).to(targets)
        return torch.cat([mixed, images[even:]]), torch.cat([targets, rest])
