"""Accelerate, as a recipe wants it."""

from typing import Any

import torch

from difformer._optional import require
from difformer.engine.config.training import Recipe
from difformer.engine.runtime.processes import check_launcher, leave_at_exit, only_cpu
from difformer.engine.runtime.run_folder import RunFolder
from difformer.verbs.pretrain.recipe import PretrainRecipe


def solver_device(device: torch.device) -> torch.device:
    """Where probes are fitted to features from a device: solvers need float64, which Apple's GPUs lack."""
    return device if device.type == "cuda" else torch.device("cpu")


def create_accelerator(recipe: Recipe | PretrainRecipe, *, trackers: bool = True) -> Any:
    """Accelerate's entry point, with the recipe's precision and trackers.

    Raises:
        ValueError: a tracker that is unknown or not installed, or fp16 on a CPU; and as `check_launcher`.
    """
    accelerate = require("accelerate", "training")
    check_launcher(recipe.training.precision)
    cpu = only_cpu()
    if cpu and recipe.training.precision == "fp16":
        raise ValueError("training.precision: fp16 needs a GPU; use bf16 or no on a CPU")
    wanted = list(recipe.trackers) if trackers else []
    known = require("accelerate.tracking", "training", install="accelerate").LOGGER_TYPE_TO_CLASS
    available = [str(name) for name in require("accelerate.tracking", "training").get_available_trackers()]
    for name in wanted:
        if name not in available:
            hint = f"pip install {name}" if name in known else f"known are {', '.join(known)}"
            raise ValueError(f"the tracker {name!r} is not there; {hint}, or leave it out of trackers")
    state = require("accelerate.state", "training", install="accelerate")
    # A run of another precision in the same process; the connection of the processes stays.
    if state.is_initialized() and state.AcceleratorState().mixed_precision != recipe.training.precision:
        state.AcceleratorState._reset_state()
    leave_at_exit()
    return accelerate.Accelerator(
        cpu=cpu,
        mixed_precision=recipe.training.precision,
        log_with=wanted or None,
        project_dir=str(RunFolder(recipe.output).path),
    )
