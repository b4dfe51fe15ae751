"""One side of the benchmark, ours or the baseline, in a process of its own.

What a process has computed before leaves its memory in a state that later work profits or suffers from, so that two
sides in one process would not be measured as their users see them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from difformer.allocator import keep_freed_memory
from difformer.diffusion import NoiseSchedule
from difformer.engine.benchmark.measuring import measure, top_operations
from difformer.engine.benchmark.subjects import Case, Subject, build_setting, cases

Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class SideConfig:
    """How a side computes.

    Attributes:
        name: `ours` or `theirs`.
        device: where.
        dtype: of the convolutions.
        batch_size: images at once; that of the subject when None.
        compile: see `BenchmarkConfig`.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    batch_size: int | None
    compile: bool | str


class Side:
    """A process that carries out cases, and waits in between; a context manager.

    Args:
        subject: the architecture, and what is read of it.
        config: how.
    """

    def __init__(self, subject: Subject, config: SideConfig) -> None:
        self.name = config.name
        self._process = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(subject, config)
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown(cancel_futures=True)

    def outputs(self, case: str) -> Outputs:
        """What the case gives on this side, the first time it runs; later, training has changed its weights."""
        return self._process.submit(_outputs, case).result()

    def measure(self, case: str, work: str | None = None) -> tuple[float, int | None]:
        """Seconds and peak bytes of one call, of the side's own work or of another of the case's; see `measure`."""
        return self._process.submit(_measure, case, work or self.name).result()

    def operations(self, case: str) -> list[tuple[str, float]]:
        """See `top_operations`."""
        return self._process.submit(_operations, case).result()


class _Worker:
    """What a side's process holds."""

    def __init__(self, subject: Subject, config: SideConfig) -> None:
        # Ours as the command line has it, the baseline as scripts have it.
        keep_freed_memory(config.name == "ours")
        self.config = config
        self._subject = subject
        self._setting: Any = None
        self._cases: dict[str, Case] = {}

    def case(self, name: str) -> Case:
        """The case, which is made when it is asked for first; the one before goes before it comes."""
        if self._setting is None:
            config = self.config
            schedule = NoiseSchedule.linear(1000)
            self._setting = build_setting(self._subject, config.device, config.dtype, config.batch_size, schedule)
            if config.compile and config.name == "ours":
                self._setting.backbone.compile(**({} if config.compile is True else {"mode": config.compile}))
        if name not in self._cases:
            self._cases.clear()
            self._cases[name] = cases(self._subject, self._setting)[name]()
        return self._cases[name]


_worker: _Worker


def _begin(subject: Subject, config: SideConfig) -> None:
    global _worker
    _worker = _Worker(subject, config)


def _outputs(case: str) -> Outputs:
    found = getattr(_worker.case(case), _worker.config.name)()
    return {name: value.float().cpu().numpy() for name, value in found.items()}


def _measure(case: str, work: str) -> tuple[float, int | None]:
    return measure(getattr(_worker.case(case), work), _worker.config.device)


def _operations(case: str) -> list[tuple[str, float]]:
    return top_operations(getattr(_worker.case(case), _worker.config.name), _worker.config.device)
