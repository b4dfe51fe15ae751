"""One side of the benchmark, ours or the baseline, in its own process.

Earlier work leaves the memory of a process in a state that makes later work faster or slower, so two sides in one
process would not be measured as their users see them.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from difformer.allocator import keep_freed_memory
from difformer.diffusion import NoiseSchedule
from difformer.verbs.bench.measuring import matrix_ceiling, measure, top_operations
from difformer.verbs.bench.subjects import Case, Subject, build_setting, cases

Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class SideConfig:
    """How a side computes.

    Attributes:
        name: `ours` or `theirs`.
        device: where.
        dtype: of the convolutions.
        batch_size: images at once; that of the subject when None.
        compile: ours is built with torch.compile.
        threads: on a CPU.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    batch_size: int | None
    compile: bool
    threads: int


class Side:
    """A process that runs cases, and waits in between; a context manager.

    The process is spawned, so a script that uses this needs the usual `if __name__ == "__main__"`.

    Args:
        subject: the architecture, and what is read from it.
        config: how.
    """

    def __init__(self, subject: Subject, config: SideConfig) -> None:
        self.name = config.name
        context = multiprocessing.get_context("spawn")
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end, subject, config), daemon=True)
        self._process.start()
        its_end.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        if kind is not None:
            self._process.terminate()
        self._process.join()

    def ceiling(self) -> float:
        """See `matrix_ceiling`."""
        return float(self._ask("ceiling"))

    def outputs(self, case: str) -> Outputs:
        """What the case gives on this side, the first time it runs; later, training has changed its weights."""
        found: Outputs = self._ask("outputs", case)
        return found

    def measure(self, case: str, work: str) -> tuple[float, int | None]:
        """Seconds and peak bytes of one call of one of the case's methods; see `measure`."""
        seconds, peak = self._ask("measure", case, work)
        return seconds, peak

    def operations(self, case: str) -> list[tuple[str, float]]:
        """See `top_operations`."""
        return list(self._ask("operations", case))

    def _ask(self, method: str, *arguments: str) -> Any:
        """The answer of the process. Raises the error raised there; RuntimeError when the process has ended."""
        try:
            self._connection.send((method, arguments))
            good, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            doing = f" in {arguments[0]!r}" if arguments else ""
            raise RuntimeError(
                f"the process of {self.name} ended{doing}, probably out of memory; give a smaller --batch_size, or "
                "--subjects '[small]'"
            ) from error
        if not good:
            raise answer
        return answer


class _Worker:
    """The state of a side's process, and its answers."""

    def __init__(self, subject: Subject, config: SideConfig) -> None:
        # Ours as on the command line, the baseline as in scripts.
        keep_freed_memory(config.name == "ours")
        torch.set_num_threads(config.threads)
        self._config = config
        self._subject = subject
        self._setting: Any = None
        self._cases: dict[str, Case] = {}

    def ceiling(self) -> float:
        return matrix_ceiling(self._config.device, self._config.dtype)

    def outputs(self, case: str) -> Outputs:
        found = getattr(self._case(case), self._config.name)()
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    def measure(self, case: str, work: str) -> tuple[float, int | None]:
        return measure(getattr(self._case(case), work), self._config.device)

    def operations(self, case: str) -> list[tuple[str, float]]:
        return top_operations(getattr(self._case(case), self._config.name), self._config.device)

    def _case(self, name: str) -> Case:
        """The case, made on the first request; the one before is freed first."""
        config = self._config
        if self._setting is None:
            schedule = NoiseSchedule.linear(1000)
            self._setting = build_setting(self._subject, config.device, config.dtype, config.batch_size, schedule)
            if config.compile and config.name == "ours":
                self._setting.backbone.compile()
        if name not in self._cases:
            self._cases.clear()
            if config.device.type == "cuda":
                torch.cuda.empty_cache()
            self._cases[name] = cases(self._subject, self._setting)[name]()
        return self._cases[name]


def _serve(connection: Connection, subject: Subject, config: SideConfig) -> None:
    """Answers until the other end is closed, also when the process there has ended."""
    # Ctrl-C reaches all processes of a terminal; this one is ended by its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(subject, config)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = True, getattr(worker, method)(*arguments)
        except Exception as error:
            answer = False, error
        connection.send(answer)
