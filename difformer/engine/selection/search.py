"""The search itself, which knows nothing of networks: accuracy is unimodal over the timesteps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# Accuracy by tap, of a timestep and a share of the training images.
Measure = Callable[[int, float], Mapping[str, float]]

# The share of the images that the coarse stage learns from, and how many timesteps it begins with at the least. Of
# eight timesteps it asks six: with one whole pass that is just under a quarter of the grid.
_COARSE_SHARE = 0.16
_COARSE_TIMESTEPS = 4
# The whole search's, where the grid is large enough.
_QUARTER = 0.25


@dataclass
class Search:
    """A search under way. Few images find the timestep, all images the block.

    A pass gives all blocks at once, so that it is timesteps that cost. Few images tell them apart by the mean of the
    best blocks, which is much more certain than which block is best.

    Attributes:
        measure: what is asked.
        timesteps: ascending.
        passes: timesteps to measure on all images at the least.
        spent: so far, in passes over all images.
        coarse: accuracy on few images by timestep and tap.
        found: accuracy on all images by tap and timestep.
    """

    measure: Measure
    timesteps: Sequence[int]
    passes: int = 1
    spent: float = 0.0
    coarse: dict[int, Mapping[str, float]] = field(default_factory=dict)
    found: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def grid_cost(self) -> float:
        """What measuring everything would take, in passes over all images."""
        return float(len(self.timesteps))

    def run(self) -> tuple[str, int]:
        """Finds the best tap and timestep.

        Returns:
            The best of those measured on all images.
        """
        self._find_timesteps()
        for count, t in enumerate(sorted(self.coarse, key=self._level, reverse=True)):
            if count >= self.passes and self.spent + 1 > _QUARTER * self.grid_cost:
                break
            self.spent += 1
            self.found |= {(tap, t): accuracy for tap, accuracy in self.measure(t, 1.0).items()}
        return max(self.found, key=lambda key: self.found[key])

    def _find_timesteps(self) -> None:
        """Asks every so many timesteps, then on either side of the best at half the distance, down to neighbours."""
        stride = 2 ** int(math.log2(max(1.0, len(self.timesteps) / _COARSE_TIMESTEPS)))
        self._look(range(stride // 2, len(self.timesteps), stride))
        while stride > 1:
            stride //= 2
            best = self.timesteps.index(max(self.coarse, key=self._level))
            self._look((best - stride, best + stride))

    def _look(self, places: Sequence[int]) -> None:
        for place in places:
            if 0 <= place < len(self.timesteps) and self.timesteps[place] not in self.coarse:
                t = self.timesteps[place]
                self.spent += _COARSE_SHARE
                self.coarse[t] = self.measure(t, _COARSE_SHARE)

    def _level(self, t: int) -> float:
        """Of a timestep: the mean of its best third of the blocks."""
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
    """Features to fuse: the best, then again and again the one that helps most, as long as any helps.

    Args:
        score: accuracy of several features together, on images that no probe has learned from.
        candidates: (tap, timestep).
        costs: of an image up to each tap; features at one timestep share a pass.
        budget: most that all passes together may cost.
        most: features.

    Returns:
        In the order in which they were taken; empty when not one is within the budget.
    """
    chosen: list[tuple[str, int]] = []
    reached = -math.inf
    while len(chosen) < most:
        affordable = [
            pair for pair in candidates if pair not in chosen and pass_costs([*chosen, pair], costs) <= budget
        ]
        scores = {pair: score([*chosen, pair]) for pair in affordable}
        best = max(scores, key=lambda pair: scores[pair], default=None)
        if best is None or scores[best] <= reached:
            break
        chosen.append(best)
        reached = scores[best]
    return chosen


def pass_costs(pairs: Sequence[tuple[str, int]], costs: Mapping[str, float]) -> float:
    """What the features of one image cost: at each timestep, a pass to the deepest tap."""
    deepest: dict[int, float] = {}
    for tap, t in pairs:
        deepest[t] = max(deepest.get(t, 0.0), costs[tap])
    return sum(deepest.values())
