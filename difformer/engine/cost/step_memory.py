"""Memory of a training step, counted before it runs, and whether it needs gradient checkpointing."""

import os
from dataclasses import replace
from functools import partial
from logging import getLogger
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from difformer.backbones import switch_checkpointing
from difformer.config import sides
from difformer.engine.config.build import outline_backbone, outline_classifier
from difformer.engine.config.recipe import Recipe
from difformer.engine.cost.costs import human_bytes
from difformer.engine.runtime.batches import divide
from difformer.engine.runtime.processes import Processes, gathered, on_main
from difformer.maps import resize_logits
from difformer.models.memory import TensorMemory
from difformer.tasks.registry import is_dense, stand_in_labels

_log = getLogger(__name__)

# The rest is for the optimiser, the scratch memory of operations, and gaps between allocations.
_SHARE = 0.8


def step_bytes(recipe: Recipe, class_names: tuple[str, ...], images: int, *, checkpointing: bool) -> int:
    """Peak bytes of a training step's activations and gradients, counted on tensors without data.

    Weights, optimiser and the scratch memory of single operations are not counted. n noise draws count as n images,
    although the head sees their mean.

    Args:
        recipe: its backbone, extractor, head, image size and precision matter; no weights are read.
        class_names: of the data.
        images: number that goes through the model at once, at least 1.
        checkpointing: recompute the backbone's activations instead of keeping them.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as `outline_classifier`.
    """
    count = images * recipe.extractor.draws
    recipe = replace(recipe, extractor=replace(recipe.extractor, draws=1))
    # Of the other implementations, none keeps a weight for each pair of places, and xformers needs tensors with data.
    attention = "math" if recipe.backbone.attention == "math" else "sdpa"
    backbone = outline_backbone(replace(recipe.backbone, attention=attention), precision=recipe.training.precision)
    switch_checkpointing(backbone, checkpointing)
    classifier = outline_classifier(recipe, class_names, backbone)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.training.precision)
    # Made of tensors with data: targets check theirs.
    labels = stand_in_labels(classifier.task, count, recipe.data.size, len(class_names))
    with FakeTensorMode(allow_non_fake_inputs=True):
        classifier.to_empty(device="cpu")
        classifier.train()
        x_0 = torch.empty(count, 3, *sides(recipe.data.size))
        # Given, since otherwise it would be computed from the images' values, which do not exist here.
        noise = (
            {}
            if recipe.extractor.clean
            else dict.fromkeys(classifier.extractor.noising.timesteps, torch.empty_like(x_0))
        )
        with TensorMemory() as memory:
            with torch.autocast("cpu", dtype=half, enabled=half is not None):
                told = classifier.conditioning.by_label(labels)
                if hasattr(classifier.head, "losses"):
                    # These draw places by values, which do not exist here: only the features are counted.
                    outputs = list(classifier.features(x_0, noise=noise, **told).values())
                else:
                    outputs = classifier(x_0, noise=noise, **told)
            loss = (
                _stand_in_loss(outputs, x_0, classifier.task.reads)
                if is_dense(classifier.task)
                else classifier.task.losses(outputs, labels)
            )
            if loss.requires_grad:
                loss.mean().backward()
    return memory.peak


def _stand_in_loss(outputs: Any, x_0: Tensor, reads: str) -> Tensor:
    """As large as a loss of maps at the images' size, or of heat maps at their own; those of dense tasks check the
    values of labels."""
    maps = outputs if isinstance(outputs, list | tuple) else [outputs]
    if isinstance(outputs, list):
        return torch.stack([one.float().mean() for one in maps])
    if reads == "points":
        return torch.stack([one.float().square().mean() for one in maps])
    return torch.stack([resize_logits(one, *x_0.shape[2:]).log_softmax(dim=1).mean() for one in maps])


def needs_checkpointing(recipe: Recipe, class_names: tuple[str, ...], images: int, processes: Processes) -> bool:
    """Whether a step would not fit without gradient checkpointing, for a backbone that is already in memory.

    Only DifFeed keeps activations of the backbone. Logs the decision, and warns if a step may not fit even with
    checkpointing.

    Args:
        recipe: with its batch size and accumulation.
        class_names: of the data.
        images: number in the training split.
        processes: Accelerate's. The one with the least free memory decides for all.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as `step_bytes`.
    """
    if not recipe.extractor.feedback_taps:
        return False
    free = gathered(processes, [free_memory(processes.device)])
    at_once = images_at_once(recipe, images, processes.num_processes)
    return on_main(processes, partial(_decide, recipe, class_names, at_once, min(free)))


def images_at_once(recipe: Recipe, images: int, processes: int) -> int:
    """Images that go through the model together in a step of training.

    Args:
        recipe: with its batch size and accumulation.
        images: number in the training split.
        processes: number that shares a batch.
    """
    batch = range(min(recipe.training.batch_size, images))
    # The first part of the first process is never smaller than another.
    return len(divide(batch, 0, processes, recipe.training.accumulation)[0].indices)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate on a GPU; on a CPU, its share of the machine's available memory."""
    if device.type == "cuda":
        # The driver counts what torch keeps for later as used.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    available = psutil.virtual_memory().available
    return int(available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _decide(recipe: Recipe, class_names: tuple[str, ...], images: int, free: int) -> bool:
    kept = step_bytes(recipe, class_names, images, checkpointing=False)
    if kept <= _SHARE * free:
        _log.info("no gradient checkpointing: a step takes %s of %s free", human_bytes(kept), human_bytes(free))
        return False
    recomputed = step_bytes(recipe, class_names, images, checkpointing=True)
    _log.info(
        "gradient checkpointing: a step takes %s of %s free, and would take %s without",
        human_bytes(recomputed), human_bytes(free), human_bytes(kept),
    )  # fmt: skip
    if recomputed > _SHARE * free:
        _log.warning(
            "a step with %d images at once takes about %s even with gradient checkpointing, and %s are free; it may "
            "not fit. Give a training.accumulation above %d",
            images, human_bytes(recomputed), human_bytes(free), recipe.training.accumulation,
        )  # fmt: skip
    return True
