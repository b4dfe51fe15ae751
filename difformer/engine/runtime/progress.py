"""Progress bars: one for a piece of work, and above it one for all pieces that a verb does one after another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that also moves the one above it, where there is one."""

    def update(self, n: float | None = 1) -> bool | None:
        """As tqdm has it."""
        done = super().update(n)
        # A bar that is not shown has no title.
        if _whole is not None and not self.disable and self.total:
            _whole.note(self.desc, self.n, self.total)
        return done


def progress_bar(total: int, title: str = "", **options: Any) -> Any:
    """A bar over images, with the rate and the time left.

    Args:
        total: how many images there are.
        title: what is done with them.
        options: of tqdm.
    """
    # Beneath the bar of all stages, what is done disappears.
    within = {} if _whole is None else {"leave": False}
    return _Bar(total=total, desc=title or None, unit="image", **{**options, **within})


class Stages:
    """The bar of all stages of a verb, each of which is also printed as a line: `[2/10] k-NN`.

    Args:
        title: what is done.
        costs: of the stages in their order, in any unit: which part of the whole time each is expected to take.
        shown: whether this process shows it.
    """

    def __init__(self, title: str, costs: Sequence[float], *, shown: bool = True) -> None:
        self._costs = costs
        self._shown = shown
        # tqdm tells the time that is left from the time so far.
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        self._bar = tqdm(total=sum(costs), desc=title, disable=not shown, bar_format=form, smoothing=0)
        self._number = 0
        self._leading = ""

    def note(self, title: str, done: float, total: float) -> None:
        """What a bar below it shows."""
        if title.startswith(self._leading):
            cost = self._costs[self._number - 1] * min(1.0, done / total)
            self._move(sum(self._costs[: self._number - 1]) + cost)

    @contextmanager
    def stage(self, name: str, leading: str = "training") -> Iterator[None]:
        """The next stage: while it is entered, a bar below moves this one through it.

        Args:
            name: of the stage.
            leading: how the title of that bar begins; others, such as those of evaluations in between, do not count.
        """
        global _whole
        self._number += 1
        self._leading = leading
        if self._shown:
            self._bar.write(f"[{self._number}/{len(self._costs)}] {name}")
        before, _whole = _whole, self
        try:
            yield
        finally:
            _whole = before
        self._move(sum(self._costs[: self._number]))

    def skip(self, count: int) -> None:
        """Leaves out the next stages."""
        self._number += count
        self._move(sum(self._costs[: self._number]))

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _move(self, place: float) -> None:
        if place > self._bar.n:
            self._bar.update(place - self._bar.n)


# The stages that this process is going through.
_whole: Stages | None = None
