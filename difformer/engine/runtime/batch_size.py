"""How many images to pass at once, where nothing is learned from them: as many as go through fastest."""

import time
from collections.abc import Callable
from logging import getLogger
from typing import TypeVar

import torch

B = TypeVar("B")

_log = getLogger(__name__)

_MOST = 512
# A CPU is busy with few images, and when its memory is full the process is killed, with no error to go back from.
_MOST_ON_CPU = 32
# Below this a size is not worth its memory.
_GAIN = 1.05
# Up to here, the first pass of a size would be measured with what the device does once.
_SMALL = 16


def most_at_once(images: int, device: torch.device) -> int:
    """The largest batch to try.

    Args:
        images: that there are for this process.
        device: where they go through the model.
    """
    return max(1, min(images, _MOST if device.type == "cuda" else _MOST_ON_CPU))


def fastest_batch_size(
    batch_of: Callable[[int], B],
    work: Callable[[B], object],
    most: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The number of images that passes most of them a second, of 1, 2, 4, ….

    The search ends with the first number that is less than 5 % faster than the one before, or for which the GPU has
    not enough memory.

    Args:
        batch_of: makes a batch of so many images; not measured.
        work: passes it, and waits until the device has finished.
        most: images to try at once, at least 1.
        clock: seconds since any moment.

    Raises:
        torch.cuda.OutOfMemoryError: not even one image fits.
    """
    best, rate, size = 1, 0.0, 1
    while size <= most:
        seconds = _seconds(batch_of(size), work, clock, passes=2 if size <= _SMALL else 1, may_fail=size > 1)
        if seconds is None:
            # Only here: the error would have held the tensors that did not fit.
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
    """Of the fastest pass; None where the GPU has not enough memory."""
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
