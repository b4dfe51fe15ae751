"""Trying a recipe out: everything is built and two steps run, and nothing is written."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from difformer._optional import require
from difformer.engine.accelerator import create_accelerator
from difformer.engine.classification.run import Run
from difformer.engine.loop.batches import check_batch_statistics
from difformer.engine.loop.run_folder import RunFolder
from difformer.engine.loop.stopping import Stopped, StopRequest
from difformer.engine.loop.trainer import Clock, Totals, Trainer
from difformer.engine.recipes.training import Recipe
from difformer.engine.trial.costs import Costs, cache_bytes, costs, human_bytes, human_flops

STEPS = 2
_CPU_BATCH = 2


@dataclass(frozen=True)
class Trial:
    """What a dry run found.

    Attributes:
        costs: as printed.
        images: counted by split.
        losses: of the steps.
        optimizer_bytes: memory of the optimiser's state.
        peak_bytes: most memory the process, or the GPU, had in use.
    """

    costs: Costs
    images: Mapping[str, int]
    losses: tuple[float, ...]
    optimizer_bytes: int
    peak_bytes: int


def try_out(recipe: Recipe, *, fake_data: bool = False) -> Trial:
    """Builds a run, prints its sizes and costs, and takes two steps.

    Args:
        recipe: the run.
        fake_data: random images, and random weights for the backbone, in place of the recipe's.

    Raises:
        ValueError, OSError, ImportError, TrainingError: as `train`.
    """
    RunFolder(recipe.output).check()
    accelerator = create_accelerator(recipe, trackers=False)
    batch = trial_batch(recipe.training.batch_size, accelerator)
    # Live features, since a trial is not to write a cache.
    trial = replace(recipe, features="live", training=replace(recipe.training, batch_size=batch))
    run = Run(trial, accelerator, fake=fake_data)
    if not fake_data:
        # Of the recipe's batches, not of the trial's.
        check_batch_statistics(run.task.module, len(run.images["train"]), recipe.training, accelerator.num_processes)
    found = costs(run.classifier, recipe.data.size)
    counts = {split: len(images) for split, images in run.images.items()}
    stand_ins = " (random stand-ins)" if fake_data else ""
    accelerator.print("\n".join(_sizes(recipe, run, found, counts, stand_ins)), flush=True)
    before = memory_in_use(accelerator.device)
    losses, seconds = two_steps(run.trainer, accelerator)
    optimizer = sum(
        value.numel() * value.element_size()
        for state in run.trainer.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    result = Trial(found, counts, tuple(losses), optimizer, peak_memory(accelerator.device))
    activations = max(0, result.peak_bytes - before - found.trained_bytes - optimizer)
    accelerator.print("\n".join(_demands(recipe, run, result, activations, seconds, batch)), flush=True)
    return result


def trial_batch(batch_size: int, accelerator: Any) -> int:
    """Images of a step, over all processes: on a CPU, a step of a large network takes minutes with a whole batch."""
    return min(batch_size, _CPU_BATCH * accelerator.num_processes) if accelerator.device.type == "cpu" else batch_size


def _sizes(recipe: Recipe, run: Run, found: Costs, counts: Mapping[str, int], stand_ins: str) -> list[str]:
    """What is known before the first step."""
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    flops = f"{found.flops / 1e9:,.1f} GFLOP an image; whole passes would be {found.full_flops / 1e9:,.1f}"
    if found.gradient_flops:
        flops += f"; gradients through the backbone about {found.gradient_flops / 1e9:,.1f} more"
    an_epoch = counts["train"] * (found.flops + found.gradient_flops)
    lines = [
        f"output        {run.folder.path}",
        f"images        {images}{stand_ins}; {len(run.classifier.class_names)} classes",
        f"backbone      {recipe.backbone.name}, {found.backbone:,} parameters, frozen",
        f"trained       {found.trained:,} parameters: head {found.head:,}, feedback {found.feedback:,}",
        f"features      {flops}",
        f"an epoch      {human_flops(an_epoch)} of features; {recipe.training.epochs} epochs "
        f"{human_flops(recipe.training.epochs * an_epoch)}",
    ]
    if recipe.features == "cached":
        head: Any = run.classifier.head
        one = cache_bytes(head.specs, head.map_sizes, getattr(torch, recipe.cache.dtype))
        total = sum(count * (recipe.cache.views if split == "train" else 1) for split, count in counts.items())
        lines.append(f"cache         {human_bytes(one * total)} in {recipe.cache.folder}; not written in a dry run")
    return lines


def _demands(recipe: Recipe, run: Run, found: Trial, activations: float, seconds: float, batch: int) -> list[str]:
    """What the steps have shown."""
    processes, accumulation = run.accelerator.num_processes, recipe.training.accumulation
    trained, optimizer = found.costs.trained_bytes, found.optimizer_bytes
    at_once, whole = (max(1, size // processes // accumulation) for size in (batch, recipe.training.batch_size))
    best = recipe.evaluation.select == "best"
    copies = 1 + bool(recipe.training.ema) + best
    interval = require("tqdm", "the estimate").tqdm.format_interval
    epoch = interval(seconds * found.images["train"])
    scaled = f"; about {human_bytes(activations / at_once * whole)} with {whole}" if whole != at_once else ""
    return [
        f"memory        backbone {human_bytes(found.costs.backbone_bytes)}, head and feedback {human_bytes(trained)}, "
        f"gradients {human_bytes(trained)}, optimiser {human_bytes(optimizer)}",
        f"activations   {human_bytes(activations)} with {at_once} images at once{scaled}",
        f"peak memory   {human_bytes(found.peak_bytes)}",
        f"disk          classifier {human_bytes(trained)}"
        f"{' (and the latest)' if best else ''}, training state (and the one before) "
        f"{human_bytes(copies * trained + optimizer)} each",
        f"time          {epoch} an epoch of training, at the last step's speed of {1 / seconds:.3g} images a second",
    ]


def two_steps(trainer: Trainer, accelerator: Any) -> tuple[list[float], float]:
    """Takes two steps and prints them.

    Returns:
        The losses, and the seconds an image of the last step.

    Raises:
        Stopped: a signal asked to stop.
    """
    clock = Clock()
    losses: list[float] = []
    seconds = 0.0

    def report(totals: Totals) -> None:
        nonlocal seconds
        lap = clock.lap()
        seconds = lap / max(1, totals.counted)
        losses.append(totals.loss_sum / max(1, totals.counted))
        accelerator.print(
            f"step {len(losses)}        {totals.counted} images, loss {losses[-1]:.4f}, {lap:.1f} s", flush=True
        )

    with StopRequest() as stop:
        if not trainer.run_epoch(stop, report, until=STEPS):
            raise Stopped("stopped; a dry run keeps nothing", int(stop.signal_seen() or 15))
    return losses, seconds


def memory_in_use(device: torch.device) -> int:
    """Of the GPU; on a CPU of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    # Accelerate brings psutil.
    return int(require("psutil", "the memory estimate").Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Most memory the GPU, or on a CPU the process, had in use."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(require("psutil", "the memory estimate").Process().memory_info().peak_wset)
    import resource

    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
