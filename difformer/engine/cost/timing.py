"""How long an image takes, measured on a few batches."""

import math
from collections.abc import Callable

from difformer.engine.loop.trainer import Clock

_FIRST = 2
_REPEATS = 3


def seconds_per_image(work: Callable[[int], object], most: int, *, budget: float = 10.0) -> float:
    """Seconds that an image takes in a batch, as the fastest of a few batches shows.

    A batch of another size than the one before comes with a pass that does not count: first passes choose algorithms
    and allocate memory, which can take a hundred times as long. Two images come first; they say how many fit into the
    time.

    Args:
        work: passes so many images through, and waits for the device.
        most: images of the batches that are meant, at least 1.
        budget: seconds to spend. Two passes of two images are done in any case; with infinity, batches are of `most`
            images, and their number is always the same.
    """
    clock = Clock()

    def timed(count: int) -> float:
        lap = Clock()
        work(count)
        return lap.seconds / count

    count = min(_FIRST, most)
    timed(count)
    seconds = timed(count)
    left = budget - clock.seconds
    fitting = most if math.isinf(left) else int(left / max(seconds, 1e-9) / (_REPEATS + 1))
    if count < min(most, fitting):
        count = min(most, fitting)
        timed(count)
        seconds = timed(count)
    for _ in range(_REPEATS - 1):
        if clock.seconds + seconds * count < budget:
            seconds = min(seconds, timed(count))
    return seconds
