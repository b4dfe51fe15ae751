"""Working together: one process for all, or all at once, with errors that reach everyone."""

import atexit
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

_YES = ("1", "true", "yes", "on", "y", "t")
# Ways of dividing a network that the launcher of Accelerate can ask for, none of which frozen networks have use for.
_DIVISIONS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


class Processes(Protocol):
    """What is asked of Accelerate's `Accelerator` or `PartialState`."""

    @property
    def num_processes(self) -> int:
        """How many share the work."""
        ...

    @property
    def process_index(self) -> int:
        """Which of them this is."""
        ...

    @property
    def is_main_process(self) -> bool:
        """Whether this one speaks for all."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...


def only_cpu() -> bool:
    """Whether to compute on the CPU: where there is nothing else, or `accelerate launch --cpu` says so. Accelerate sees
    several processes without a GPU only when it is told.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in _YES
    return asked or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def check_launcher(precision: str) -> None:
    """Refuses what `accelerate launch`, its configuration file or its variables in the environment ask for and the
    recipe does not. A recipe says everything that its results depend on, so the launcher only says where to run: on
    how many processes and machines, and whether on the CPU. It cannot be told whether it was given a precision of `no`,
    which is its default, so that agrees with every recipe.

    Args:
        precision: the recipe's.

    Raises:
        ValueError: the launcher asks for another precision, for accumulation, compilation, or for a way of dividing
            the network that is not supported.
    """

    def asked(name: str, *nothing: str) -> str | None:
        value = os.environ.get(name, "").lower()
        return None if value in ("", *nothing) else value

    def refuse(what: str, instead: str) -> None:
        raise ValueError(f"accelerate launch asks for {what}; {instead}, and leave it out there")

    if mixed := asked("ACCELERATE_MIXED_PRECISION", "no", precision):
        instead = "give that precision in the recipe (training.precision, or precision where nothing is trained)"
        refuse(f"mixed precision {mixed}, but the recipe for {precision}", instead)
    if steps := asked("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"):
        refuse(f"{steps} steps of gradient accumulation", f"give training.accumulation: {steps} in the recipe")
    if compiler := asked("ACCELERATE_DYNAMO_BACKEND", "no"):
        refuse(f"compilation by {compiler}", "give backbone.compile: true in the recipe (compile: true in pretraining)")
    for name, title in _DIVISIONS.items():
        if (asked(name) or "") in _YES:
            refuse(title, "every process has the whole network here: choose plain data parallelism (--multi_gpu)")


def solver_device(device: torch.device) -> torch.device:
    """Where probes are fitted to features from a device: solvers need float64, which Apple's GPUs lack."""
    return device if device.type == "cuda" else torch.device("cpu")


def create_accelerator(precision: str, *, trackers: Collection[str] = (), folder: Path | None = None) -> Any:
    """Accelerate's entry point.

    Args:
        precision: no, bf16 or fp16.
        trackers: of Accelerate's: tensorboard, wandb, ….
        folder: where these write.

    Raises:
        ValueError: a tracker that is unknown or not installed, or fp16 on a CPU; and as `check_launcher`.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    check_launcher(precision)
    cpu = only_cpu()
    if cpu and precision == "fp16":
        raise ValueError("precision fp16 needs a GPU; use bf16 or no on a CPU")
    available = [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in available:
            known = list(LOGGER_TYPE_TO_CLASS)
            hint = f"pip install {name}" if name in known else f"known are {', '.join(known)}"
            raise ValueError(f"the tracker {name!r} is not there; {hint}, or leave it out of trackers")
    # A run of another precision in the same process; the connection of the processes stays.
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    leave_at_exit()
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=None if folder is None else str(folder),
    )


def leave_at_exit() -> None:
    """Has the process leave the others before the interpreter ends, whose threads would else be cut off and abort."""
    # Registered again, it stays one.
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main(processes: Processes, work: Callable[[], T]) -> T:
    """Works on the main process; gives its result, or raises its error, on all.

    Args:
        processes: Accelerate's.
        work: gives a result that can be pickled.
    """
    outcome: list[Any] = [_attempt(work) if processes.is_main_process else None]
    if processes.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(outcome)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def on_all(processes: Processes, work: Callable[[], T]) -> T:
    """Works on every process and waits for all; gives each its result.

    An error on one is raised on all, so that none waits for ever. Its own error comes first.
    """
    result, error = _attempt(work)
    errors = gathered(processes, [error])
    error = error or next((other for other in errors if other is not None), None)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def gathered(processes: Processes, items: list[T]) -> list[T]:
    """The items of all processes, in their order, on every one of them; they must be such as can be pickled."""
    if processes.num_processes == 1:
        return items
    from accelerate.utils import gather_object

    everywhere: list[T] = gather_object(items)
    return everywhere


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error
