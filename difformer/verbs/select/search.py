"""The search itself, without networks; it assumes that scores have a single maximum over the timesteps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# From a timestep and a share of the training images: score by tap, and the cost in passes over all images.
Measure = Callable[[int, float], tuple[Mapping[str, float], float]]

# The share of the images that the coarse stage learns from, and the least number of timesteps it begins with. Of eight
# timesteps it measures six: with one whole pass that is just under a quarter of the grid's cost.
_COARSE_SHARE = 0.16
_COARSE_TIMESTEPS = 4
# The most that a search costs, as a share of the grid's cost, if the grid is large enough.
_MOST_OF_GRID = 0.25


@dataclass
class Search:
    """A search and its state. Few images find the timestep, all images the block.

    A pass gives all blocks at once, so the cost is in the timesteps. Few images tell timesteps apart by the mean of the
    best blocks, which is much more certain than which block is best.

    Attributes:
        measure: gives the scores of a timestep.
        timesteps: ascending.
        whole: the least number of timesteps to measure on all images.
        spent: cost so far, in passes over all images; the whole grid takes one for each timestep.
        coarse: score on few images by timestep and tap.
        found: score on all images by tap and timestep.
    """

    measure: Measure
    timesteps: Sequence[int]
    whole: int = 1
    spent: float = 0.0
    coarse: dict[int, Mapping[str, float]] = field(default_factory=dict)
    found: dict[tuple[str, int], float] = field(default_factory=dict)

    def run(self) -> tuple[str, int]:
        """Finds the best tap and timestep.

        Returns:
            The best of those measured on all images.
        """
        if self.whole < len(self.timesteps):
            # On few images: timesteps at a stride, then on either side of the best at half of it, down to neighbours.
            stride = 2 ** int(math.log2(max(1.0, len(self.timesteps) / _COARSE_TIMESTEPS)))
            self._look(range(stride // 2, len(self.timesteps), stride))
            while stride > 1:
                stride //= 2
                best = self.timesteps.index(max(self.coarse, key=self._promise))
                self._look((best - stride, best + stride))
        for count, t in enumerate(sorted(self.timesteps, key=self._promise, reverse=True)):
            if count >= self.whole and self.spent + 1 > _MOST_OF_GRID * len(self.timesteps):
                break
            self.found |= {(tap, t): score for tap, score in self._ask(t, 1.0).items()}
        return max(self.found, key=lambda key: self.found[key])

    def _look(self, places: Sequence[int]) -> None:
        """Measures the timesteps at these indices on few images, if there are such and they are not measured yet."""
        for place in places:
            if 0 <= place < len(self.timesteps) and self.timesteps[place] not in self.coarse:
                t = self.timesteps[place]
                self.coarse[t] = self._ask(t, _COARSE_SHARE)

    def _ask(self, t: int, share: float) -> Mapping[str, float]:
        scores, cost = self.measure(t, share)
        self.spent += cost
        return scores

    def _promise(self, t: int) -> float:
        """The mean score of a timestep's best third of the blocks on few images; -inf if it was not measured."""
        if t not in self.coarse:
            return -math.inf
        best = sorted(self.coarse[t].values(), reverse=True)[: math.ceil(len(self.coarse[t]) / 3)]
        return sum(best) / len(best)


def greedy_set(
    score: Callable[[Sequence[tuple[str, int]]], float],
    candidates: Sequence[tuple[str, int]],
    costs: Mapping[str, float],
    *,
    budget: float,
    most: int,
) -> list[tuple[str, int]]:
    """Features to fuse: first the best, then repeatedly the one that improves the score most, as long as one does.

    Args:
        score: of several features together, on images that no probe has learned from; larger is better.
        candidates: (tap, timestep).
        costs: of an image up to each tap.
        budget: the most that `set_cost` of the features may be.
        most: the largest number of features.

    Returns:
        The features in the order of the choice; empty if none is within the budget.
    """
    chosen: list[tuple[str, int]] = []
    reached = -math.inf
    while len(chosen) < most:
        affordable = [pair for pair in candidates if pair not in chosen and set_cost([*chosen, pair], costs) <= budget]
        scores = {pair: score([*chosen, pair]) for pair in affordable}
        best = max(scores, key=lambda pair: scores[pair], default=None)
        if best is None or scores[best] <= reached:
            break
        chosen.append(best)
        reached = scores[best]
    return chosen


def set_cost(pairs: Sequence[tuple[str, int]], costs: Mapping[str, float]) -> float:
    """The cost of the features of one image: an extractor runs to the deepest tap at every timestep."""
    return len({t for _, t in pairs}) * max((costs[tap] for tap, _ in pairs), default=0.0)
