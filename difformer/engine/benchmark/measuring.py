"""Time, memory, the device's ceiling, and where the time goes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing.

    Attributes:
        seconds: of each repetition.
        peak_bytes: most GPU memory in use during one of them, beyond what was there before it; None on a CPU.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest minus smallest, over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def interleave(
    works: Sequence[Callable[[], object]], repeats: int, device: torch.device, *, warmups: int = 1
) -> list[Timing]:
    """Measures several works in turn, so that what disturbs the machine disturbs all of them.

    Args:
        works: called without arguments.
        repeats: measured calls of each.
        device: whose work is waited for.
        warmups: calls of each before.
    """
    for _ in range(warmups):
        for work in works:
            work()
    seconds: list[list[float]] = [[] for _ in works]
    peaks: list[list[int | None]] = [[] for _ in works]
    for _ in range(repeats):
        for number, work in enumerate(works):
            before = _begin_peak(device)
            start = _now(device)
            work()
            seconds[number].append(_now(device) - start)
            peaks[number].append(_end_peak(device, before))
    return [
        Timing(tuple(times), max((peak for peak in found if peak is not None), default=None))
        for times, found in zip(seconds, peaks, strict=True)
    ]


def matrix_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of several: what hardware and library can do at most."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = _now(device)
        torch.mm(left, right)
        best = min(best, _now(device) - start)
    return 2 * side**3 / best


def top_operations(work: Callable[[], object], device: torch.device, count: int = 8) -> list[tuple[str, float]]:
    """The operations that take longest in one call, with their share of the time of all."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
        _now(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -float(getattr(event, key)))
    total = sum(float(getattr(event, key)) for event in events) or 1.0
    return [(event.key, float(getattr(event, key)) / total) for event in events[:count]]


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _begin_peak(device: torch.device) -> int | None:
    """Memory in use now; the highest from here on is asked of `_end_peak`."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _end_peak(device: torch.device, before: int | None) -> int | None:
    return None if before is None else torch.cuda.max_memory_allocated(device) - before
