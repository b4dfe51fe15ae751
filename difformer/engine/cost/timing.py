"""How long an image takes, measured on a few batches."""

from collections.abc import Callable

from difformer.engine.loop.trainer import Clock

# Images of the first batch, and how many times as large the next ones are.
_FIRST, _GROWTH = 2, 4


def seconds_per_image(work: Callable[[int], object], most: int, *, budget: float = 30.0) -> float:
    """Seconds that an image takes in a batch of `most`.

    Batches grow while there is time. Of each size the fastest pass counts, and not the first, if there are others: it
    chooses algorithms and allocates memory, which can take a hundred times as long. Where the time ends before batches
    of `most` images, the last two sizes say what each further image takes: on a machine that does other work, a batch
    takes long however small it is.

    Args:
        work: passes so many images through, and waits for the device.
        most: images of the batches that are meant, at least 1.
        budget: seconds in which all passes but the first should end. With infinity, the passes are always the same.
    """
    clock = Clock()

    def fastest(count: int, passes: int) -> float:
        times: list[float] = []
        while not times or (len(times) < passes and clock.seconds + times[-1] <= budget):
            lap = Clock()
            work(count)
            times.append(lap.seconds)
        return min(times[1:] or times)

    count = min(_FIRST, most)
    seconds = fastest(count, 2)
    each = seconds / count
    while count < most:
        larger = min(most, _GROWTH * count)
        if clock.seconds + seconds + each * (larger - count) > budget:
            break
        longer = fastest(larger, 4 if larger == most else 2)
        each = max(0.0, longer - seconds) / (larger - count)
        count, seconds = larger, longer
    return (seconds + each * (most - count)) / most
