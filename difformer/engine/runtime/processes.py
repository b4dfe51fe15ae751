"""Work shared by processes: on the main one or on all, with errors that reach every process."""

import atexit
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from difformer.models.precision import warn_if_emulated

T = TypeVar("T")

_YES = ("1", "true", "yes", "on", "y", "t")
# Ways of dividing a network that Accelerate's launcher can request; frozen networks need none of them.
_DIVISIONS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


class Processes(Protocol):
    """The part of Accelerate's `Accelerator` or `PartialState` that is used here."""

    @property
    def num_processes(self) -> int:
        """How many processes share the work."""
        ...

    @property
    def process_index(self) -> int:
        """Which of these processes this is."""
        ...

    @property
    def is_main_process(self) -> bool:
        """Whether this process does the work that is done once."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...


def only_cpu() -> bool:
    """Whether to compute on the CPU: if there is no other device, or with `accelerate launch --cpu`. Accelerate
    recognises several processes without a GPU only if it is told to use the CPU.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in _YES
    return asked or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def check_launcher(precision: str) -> None:
    """Refuses settings of `accelerate launch`, its configuration file or its environment variables that the recipe does
    not have.

    A recipe contains everything that its results depend on. The launcher only decides where to run: on how many
    processes and machines, and whether on the CPU. A precision of `no` is its default, which cannot be told from one
    that was given, so it is accepted with every recipe.

    Args:
        precision: the recipe's.

    Raises:
        ValueError: the launcher requests another precision, accumulation, compilation, or a way of dividing the
            network that is not supported.
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
        trackers: Accelerate's: tensorboard, wandb, ….
        folder: where the trackers write.

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
    if cpu and precision == "bf16":
        warn_if_emulated(torch.bfloat16, "cpu")
    available = [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in available:
            known = list(LOGGER_TYPE_TO_CLASS)
            hint = f"pip install {name}" if name in known else f"known are {', '.join(known)}"
            raise ValueError(f"the tracker {name!r} is not available; {hint}, or leave it out of trackers")
    # An earlier run in this process had another precision. The connection between processes stays.
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
    """Disconnects from the other processes before the interpreter ends; its threads could abort otherwise."""
    # At most one registration.
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main(processes: Processes, work: Callable[[], T]) -> T:
    """Does work on the main process; returns its result, or raises its error, on all processes.

    Args:
        processes: Accelerate's.
        work: returns a result that can be pickled.
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
    """Does work on every process and waits for all; returns each process's own result.

    An error on one process is raised on all, so that none waits forever. A process raises its own error if it has one.
    """
    result, error = _attempt(work)
    errors = gathered(processes, [error])
    error = error or next((other for other in errors if other is not None), None)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def gathered(processes: Processes, items: list[T]) -> list[T]:
    """The items of all processes, in the order of the processes, on every process. Items must be picklable."""
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
