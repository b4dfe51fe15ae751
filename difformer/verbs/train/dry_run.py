"""Trying a recipe out: everything is built and two steps run, and nothing is written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from difformer.backbones import CheckpointingBackbone
from difformer.config import shown, sides
from difformer.engine.config.recipe import Recipe
from difformer.engine.cost.costs import Costs, cache_bytes, costs, human_bytes, human_flops
from difformer.engine.cost.step_memory import free_memory, images_at_once, step_bytes
from difformer.engine.cost.timing import seconds_per_image
from difformer.engine.cost.trial import STEPS, memory_in_use, peak_memory, trial_batch, two_steps
from difformer.engine.extraction.estimate import time_batches, time_image
from difformer.engine.extraction.extract import BATCH_SIZE
from difformer.engine.loop.trainer import Place
from difformer.engine.runtime.batches import check_batch_statistics
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.run_folder import RunFolder
from difformer.tasks.registry import stand_in_labels
from difformer.verbs.train.run import Run


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
        ValueError, OSError, ImportError, TrainingError: as `train`; and a step that does not fit into the memory.
    """
    RunFolder(recipe.output).check()
    accelerator = create_accelerator(recipe.training.precision)
    batch = trial_batch(recipe.training.batch_size, accelerator)
    run = Run(recipe, accelerator, fake=fake_data, at_once=batch)
    recipe = run.recipe
    if not fake_data:
        # Of the recipe's batches, not of the trial's.
        images, shared = len(run.images["train"]), recipe.training.sync_batch_norm
        check_batch_statistics(run.objective.module, images, recipe.training, accelerator, shared=shared)
    found = costs(run.classifier, recipe.data.size)
    counts = {split: len(images) for split, images in run.images.items()}
    stand_ins = " (random stand-ins)" if fake_data else ""
    accelerator.print("\n".join(_sizes(recipe, run, found, counts, stand_ins)), flush=True)
    _check_memory(run, batch)
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


def _sizes(recipe: Recipe, run: Run, found: Costs, counts: Mapping[str, int], stand_ins: str) -> list[str]:
    """What is known before the first step."""
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    flops = f"{found.flops / 1e9:,.1f} GFLOP an image; whole passes would be {found.full_flops / 1e9:,.1f}"
    if found.gradient_flops:
        flops += f"; gradients through the backbone about {found.gradient_flops / 1e9:,.1f} more"
    outputs = "points" if recipe.task.name == "keypoints" else "classes" if recipe.task.built_in else "outputs"
    an_epoch = counts["train"] * (found.flops + found.gradient_flops)
    lines = [
        f"output        {run.folder.path}",
        f"images        {images}{stand_ins}; {len(run.classifier.class_names)} {outputs}",
        f"backbone      {recipe.backbone.name}, {found.backbone:,} parameters, frozen",
        f"trained       {found.trained:,} parameters: head {found.head:,}, feedback {found.feedback:,}",
        f"features      {flops}",
        f"an epoch      {human_flops(an_epoch)} of features; {recipe.training.epochs} epochs "
        f"{human_flops(recipe.training.epochs * an_epoch)}",
    ]
    if recipe.init is not None:
        lines.append(f"starts from   {recipe.init}{' (not read in a dry run with stand-ins)' if stand_ins else ''}")
    if recipe.features == "cached":
        head: Any = run.classifier.head
        one = cache_bytes(head.specs, head.map_sizes, getattr(torch, recipe.cache.dtype))
        total = sum(count * (recipe.cache.views if split == "train" else 1) for split, count in counts.items())
        lines.append(f"cache         {human_bytes(one * total)} in {recipe.cache.folder}; not written in a dry run")
    return lines


def _check_memory(run: Run, batch: int) -> None:
    """Raises ValueError where a step of so many images would not fit into the memory; counted before it is taken."""
    recipe, device = run.recipe, run.accelerator.device
    images = _at_once(recipe, batch, run)
    backbone = run.classifier.backbone
    needed = step_bytes(recipe, run.classifier.class_names, images, checkpointing=_checkpointing(run))
    free = free_memory(device)
    run.accelerator.print(
        f"a step        about {human_bytes(needed)} with {images} images at once; {human_bytes(free)} are free",
        flush=True,
    )
    if needed > free:
        own = "" if backbone.image_size is None else f" (that of the backbone is {shown(backbone.image_size)})"
        raise ValueError(
            f"{images} images of {shown(recipe.data.size)} pixels at once need about {human_bytes(needed)} of memory, "
            f"and {human_bytes(free)} are free; give a smaller data.size{own}, a lower extractor.chunk_size, or for "
            "DifFeed backbone.gradient_checkpointing: true"
        )


def _checkpointing(run: Run) -> bool:
    backbone = run.classifier.backbone
    return isinstance(backbone, CheckpointingBackbone) and bool(backbone.gradient_checkpointing)


def _at_once(recipe: Recipe, batch: int, run: Run) -> int:
    """Images that go through the model together in one process, in a step of so many over all processes."""
    recipe = replace(recipe, training=replace(recipe.training, batch_size=batch))
    return images_at_once(recipe, len(run.images["train"]), run.accelerator.num_processes)


def _demands(recipe: Recipe, run: Run, found: Trial, activations: float, seconds: float, batch: int) -> list[str]:
    """What the steps have shown."""
    trained, optimizer = found.costs.trained_bytes, found.optimizer_bytes
    at_once = _at_once(recipe, batch, run)
    # Extraction has its own number, and the steps after it hold pooled features alone.
    cached = recipe.features == "cached"
    whole = BATCH_SIZE if cached else _at_once(recipe, recipe.training.batch_size, run)
    best = recipe.evaluation.select == "best"
    copies = 1 + bool(recipe.training.ema) + best
    what = "in the extraction" if cached else f"of a batch of {recipe.training.batch_size}"
    scaled = f"; about {human_bytes(activations / at_once * whole)} with {whole} {what}" if whole != at_once else ""
    share = f" of each of {run.accelerator.num_processes} processes" if run.accelerator.num_processes > 1 else ""
    return [
        f"memory        backbone {human_bytes(found.costs.backbone_bytes)}, head and feedback {human_bytes(trained)}, "
        f"gradients {human_bytes(trained)}, optimiser {human_bytes(optimizer)}{share}",
        f"activations   {human_bytes(activations)} with {at_once} images at once{scaled}{share}",
        f"peak memory   {human_bytes(found.peak_bytes)} of this process",
        f"disk          classifier {human_bytes(trained)}"
        f"{' (and the latest)' if best else ''}, training state (and the one before) "
        f"{human_bytes(copies * trained + optimizer)} each",
        f"time          {_time_cached(run, found) if cached else _time_live(run, found, seconds)}",
    ]


def _time_live(run: Run, found: Trial, seconds: float) -> str:
    # Processes that measured different numbers of steps would wait for each other.
    if run.accelerator.num_processes == 1:
        seconds = _step_seconds(run)
    epoch = _interval(seconds * found.images["train"])
    return f"{epoch} an epoch of training, at {1 / seconds:.3g} images a second"


def _step_seconds(run: Run) -> float:
    """Of an image of a training step of the recipe's batches, as far as these fit into the memory; of one process."""
    trainer, recipe, place = run.trainer, run.recipe, Place(STEPS, 0, 0)

    def step(batch: Any) -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        losses, _ = run.objective.losses(trainer.model, batch, run.accelerator.device, place)
        run.accelerator.backward(losses.mean())
        trainer.optimizer.step()
        # Waits for a GPU.
        losses.sum().item()

    most = _fitting(run, _at_once(recipe, recipe.training.batch_size, run))
    return time_batches(step, run.images["train"], most, recipe.training.workers)


def _fitting(run: Run, most: int) -> int:
    """So many images, or as many as fit into the memory at once."""
    checkpointing, device = _checkpointing(run), run.accelerator.device
    while most > 1 and step_bytes(
        run.recipe, run.classifier.class_names, most, checkpointing=checkpointing
    ) > free_memory(device):
        most //= 2
    return most


def _time_cached(run: Run, found: Trial) -> str:
    """Of the extraction, which is done once, and of epochs that read what it has written."""
    recipe, processes = run.recipe, run.accelerator.num_processes
    views = {split: recipe.cache.views if split == "train" else 1 for split in found.images}
    images = sum(views[split] * count for split, count in found.images.items())
    at_once = _fitting(run, min(BATCH_SIZE, found.images["train"]))
    extraction = images / processes * time_image(run.classifier, run.images["train"], at_once, recipe.training.workers)
    epoch = found.images["train"] / processes * _head_seconds(run)
    everything = _interval(extraction + recipe.training.epochs * epoch)
    return (
        f"{_interval(extraction)} for the features of {images:,} images, once; then {_interval(epoch)} an epoch; "
        f"{everything} in all for {recipe.training.epochs} epochs, without evaluation"
    )


def _head_seconds(run: Run) -> float:
    """Of an image of a step that reads cached features: the head forwards and backwards, and the optimiser."""
    classifier, device = run.classifier, run.accelerator.device
    head: Any = classifier.head
    most = _at_once(run.recipe, run.recipe.training.batch_size, run)
    features = {}
    for key, spec in head.specs.items():
        height, width = sides(head.map_sizes[key] or spec.size)
        cells = min(height, spec.height), min(width, spec.width)
        features[key] = torch.zeros(most, spec.channels, *cells, device=device)
    labels = stand_in_labels(classifier.task, most, run.recipe.data.size, len(classifier.class_names)).to(device)

    def step(count: int) -> None:
        with run.accelerator.autocast():
            outputs = head({key: maps[:count] for key, maps in features.items()})
            loss = classifier.task.losses(outputs, labels[:count]).mean()
        run.accelerator.backward(loss)
        run.trainer.optimizer.step()
        run.trainer.optimizer.zero_grad()
        # Waits for a GPU.
        loss.item()

    # Processes whose heads share batch statistics must take the same steps.
    return seconds_per_image(step, most, budget=10.0 if run.accelerator.num_processes == 1 else math.inf)


def _interval(seconds: float) -> str:
    return tqdm.format_interval(seconds)
