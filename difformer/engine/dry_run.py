"""Trying a recipe out: everything is built and two steps run, and nothing is written."""

import resource
import sys
from dataclasses import replace
from typing import Any

import torch

from difformer.engine.costs import Costs, cache_bytes, costs, human_bytes
from difformer.engine.loop import Clock, Totals
from difformer.engine.recipe import Recipe
from difformer.engine.run import Run, create_accelerator
from difformer.engine.stopping import Stopped, StopRequest

STEPS = 2
# On a CPU, a step of a large network takes minutes with a whole batch.
_CPU_BATCH = 2


def try_out(recipe: Recipe, *, fake_data: bool = False) -> Costs:
    """Builds a run, prints its sizes and costs, and takes two steps.

    Args:
        recipe: the run.
        fake_data: random images, and random weights for the backbone, in place of the recipe's.

    Returns:
        The costs that are printed.

    Raises:
        ValueError, OSError, ImportError, TrainingError: as `train`.
    """
    accelerator = create_accelerator(recipe, trackers=False)
    batch = recipe.training.batch_size
    if accelerator.device.type == "cpu":
        batch = min(batch, _CPU_BATCH * accelerator.num_processes)
    # Live features, since a trial is not to write a cache.
    trial = replace(recipe, features="live", training=replace(recipe.training, batch_size=batch))
    run = Run(trial, accelerator, fake=fake_data)
    found = costs(run.classifier)
    accelerator.print("\n".join(_report(recipe, run, found)))
    _two_steps(run, batch)
    return found


def _report(recipe: Recipe, run: Run, found: Costs) -> list[str]:
    counts = {split: len(images) for split, images in run.images.items()}
    classes = len(run.classifier.class_names)
    lines = [
        f"output        {run.folder.path}",
        f"images        {', '.join(f'{count:,} {split}' for split, count in counts.items())}; {classes} classes",
        f"backbone      {recipe.backbone.name}, {found.backbone:,} parameters, frozen, "
        f"{human_bytes(found.backbone_bytes)}",
        f"trained       {found.trained:,} parameters: head {found.head:,}, feedback {found.feedback:,}",
        f"features      {found.flops / 1e9:,.1f} GFLOP an image; whole passes would be {found.full_flops / 1e9:,.1f}",
        f"one epoch     {counts['train'] * found.flops / 1e15:,.3f} PFLOP of features",
        f"memory        weights {human_bytes(found.backbone_bytes + 2 * found.trained_bytes)} with gradients, "
        f"optimiser up to {human_bytes(2 * found.trained_bytes)}; activations: see the peak below",
        f"disk          classifier {human_bytes(found.trained_bytes)}, training state up to "
        f"{human_bytes((4 if recipe.training.ema else 3) * found.trained_bytes)}",
    ]
    if recipe.features == "cached":
        head = run.classifier.head
        one = cache_bytes(head.specs, head.map_sizes, getattr(torch, recipe.cache.dtype))  # type: ignore[arg-type]
        total = sum(count * (recipe.cache.views if split == "train" else 1) for split, count in counts.items())
        lines.append(f"cache         {human_bytes(one * total)} in {recipe.cache.folder}")
    return lines


def _two_steps(run: Run, batch: int) -> None:
    clock = Clock()

    def report(totals: Totals) -> None:
        loss = totals.loss_sum / max(1, totals.counted)
        run.accelerator.print(f"step          {totals.counted} images, loss {loss:.4f}, {clock.lap():.1f} s")

    with StopRequest() as stop:
        if not run.trainer.run_epoch(stop, report, until=STEPS):
            raise Stopped("stopped; a dry run keeps nothing", int(stop.signal_seen() or 15))
    note = "" if batch == run.recipe.training.batch_size else f", with batches of {batch}"
    run.accelerator.print(f"peak memory   {human_bytes(_peak_memory(run.accelerator.device))}{note}")


def _peak_memory(device: torch.device) -> Any:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
