"""Working together: one process for all, or all at once, with errors that reach everyone."""

import atexit
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from difformer._optional import require

T = TypeVar("T")


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
        require("accelerate.utils", "several processes", install="accelerate").broadcast_object_list(outcome)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def on_all(processes: Processes, work: Callable[[], T]) -> T:
    """Works on every process and waits for all; gives each its result.

    An error on one is raised on all, so that none waits for ever. Its own error comes first.
    """
    result, error = _attempt(work)
    if processes.num_processes > 1:
        errors = require("accelerate.utils", "several processes", install="accelerate").gather_object([error])
        error = error or next((other for other in errors if other is not None), None)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error
