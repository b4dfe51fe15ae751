"""The batch size with the highest throughput, for images that nothing is learned from."""

import time
from collections.abc import Callable
from logging import getLogger
from typing import TypeVar

import torch

B = TypeVar("B")

_log = getLogger(__name__)

_MOST = 512
# A few images keep a CPU busy, and when its memory is full the process is killed, without an error to recover from.
_MOST_ON_CPU = 32
# A larger size that gains less is not worth its memory.
_GAIN = 1.05
# Up to this size, work that the device does only once would dominate the first pass, so there is a second.
_SMALL = 16


def most_at_once(images: int, device: torch.device) -> int:
    """The largest batch to try.

    Args:
        images: number for this process.
        device: where the model runs.
    """
    return max(1, min(images, _MOST if device.type == "cuda" else _MOST_ON_CPU))


def fastest_batch_size(
    batch_of: Callable[[int], B],
    work: Callable[[B], object],
    most: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The batch size of 1, 2, 4, … with the most images per second.

    The search ends with the first size that is less than 5 % faster than the one before, or for which the GPU has too
    little memory.

    Args:
        batch_of: makes a batch of a size; not measured.
        work: runs the model on it, and waits until the device has finished.
        most: the largest size to try, at least 1.
        clock: seconds since any moment.

    Raises:
        torch.cuda.OutOfMemoryError: not even one image fits.
    """
    best, rate, size = 1, 0.0, 1
    while size <= most:
        seconds = _seconds(batch_of(size), work, clock, passes=2 if size <= _SMALL else 1, may_fail=size > 1)
        if seconds is None:
            # Only here, where the error, which held the tensors that did not fit, is gone.
            torch.cuda.empty_cache()
            break
        found = size / max(seconds, 1e-9)
        if found < _GAIN * rate:
            break
        best, rate, size = size, found, 2 * size
    _log.info("%d images at once, at %.3g images a second", best, rate)
    return best


def _seconds(
    batch: B, work: Callable[[B], object], clock: Callable[[], float], *, passes: int, may_fail: bool
) -> float | None:
    """Seconds of the fastest pass; None if the GPU has too little memory."""
    found = []
    try:
        for _ in range(passes):
            start = clock()
            work(batch)
            found.append(clock() - start)
    except torch.cuda.OutOfMemoryError:
        if not may_fail:
            raise
        return None
    return min(found)
