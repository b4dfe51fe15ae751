"""Time, memory, the device's ceiling, and where the time goes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing.

    Attributes:
        seconds: of each repetition.
        peaks: most GPU memory in use during each, beyond what was there before it; None on a CPU.
    """

    seconds: tuple[float, ...]
    peaks: tuple[int | None, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def peak_bytes(self) -> int | None:
        """The highest of all; None on a CPU."""
        return max((peak for peak in self.peaks if peak is not None), default=None)

    @property
    def spread(self) -> float:
        """Largest minus smallest, over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def measure(work: Callable[[], object], device: torch.device) -> tuple[float, int | None]:
    """Seconds of one call, and the most GPU memory in use during it, beyond what was there before; None on a CPU."""
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    start = _now(device)
    work()
    seconds = _now(device) - start
    return seconds, torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None


def matrix_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of several: a reference for hardware and library."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = _now(device)
        torch.mm(left, right)
        best = min(best, _now(device) - start)
    return 2 * side**3 / best


def top_operations(work: Callable[[], object], device: torch.device, count: int = 8) -> list[tuple[str, float]]:
    """The operations that take longest in one call, with their shares of the total time."""
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
    """Seconds, read after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
