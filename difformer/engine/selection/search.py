"""The search itself, which knows nothing of networks: accuracy is unimodal over timesteps and over blocks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

# Accuracy by tap, of a timestep, some taps and a share of the training images.
Measure = Callable[[int, Sequence[str], float], Mapping[str, float]]

# Timesteps that the coarse stage looks at, and the share of the images that it learns from.
_COARSE_TIMESTEPS = 3
_COARSE_SHARE = 0.2
# Blocks on either side of the best that later stages look at.
_NEAR, _NEXT = 2, 1


@dataclass
class Search:
    """A search under way.

    Attributes:
        measure: what is asked.
        taps: in network order.
        costs: of an image up to each tap.
        timesteps: ascending.
        spent: so far, in units of one image through the whole network.
        found: accuracy on all images by tap and timestep.
    """

    measure: Measure
    taps: Sequence[str]
    costs: Mapping[str, float]
    timesteps: Sequence[int]
    spent: float = 0.0
    found: dict[tuple[str, int], float] = field(default_factory=dict)
    _levels: dict[int, Mapping[str, float]] = field(default_factory=dict)

    @property
    def grid_cost(self) -> float:
        """What measuring everything would take."""
        return float(len(self.timesteps))

    def run(self) -> tuple[str, int]:
        """Finds the best tap and timestep: coarsely, then along the timesteps, then on all images.

        Returns:
            The best of those measured on all images.
        """
        places = np.linspace(0, len(self.timesteps) - 1, _COARSE_TIMESTEPS + 2).round().astype(int)[1:-1]
        coarse = {place: self._ask(place, self.taps, _COARSE_SHARE) for place in dict.fromkeys(places.tolist())}
        tap, place = max(
            ((tap, place) for place in coarse for tap in self.taps), key=lambda key: coarse[key[1]][key[0]]
        )
        near = self._near(tap, _NEAR)
        self._levels = {place: {name: found[name] for name in near} for place, found in coarse.items()}
        tap, place = self._climb(near, place)
        # The better of the neighbours, on all images: of few images, the best is not certain.
        for other in self._beside(place):
            near = self._near(tap, _NEXT)
            self.found |= {
                (name, self.timesteps[other]): accuracy for name, accuracy in self._ask(other, near, 1.0).items()
            }
        return max(self.found, key=lambda key: self.found[key])

    def _climb(self, near: Sequence[str], place: int) -> tuple[str, int]:
        """Goes along the timesteps as long as it gets better, looking at blocks near the best."""
        while True:
            for at in (place, place - 1, place + 1):
                if 0 <= at < len(self.timesteps) and at not in self._levels:
                    self._levels[at] = self._ask(at, near, _COARSE_SHARE)
            better = max(self._around(place), key=self._level)
            if self._level(better) <= self._level(place):
                found = self._levels[place]
                return max(found, key=lambda name: found[name]), place
            place = better

    def _beside(self, place: int) -> list[int]:
        """The timestep that was reached, and the better of its neighbours."""
        return [place, *sorted(self._around(place)[1:], key=lambda at: -self._level(at))[:1]]

    def _around(self, place: int) -> list[int]:
        return [at for at in (place, place - 1, place + 1) if at in self._levels]

    def _level(self, place: int) -> float:
        return max(self._levels[place].values())

    def _near(self, tap: str, distance: int) -> Sequence[str]:
        centre = list(self.taps).index(tap)
        return self.taps[max(0, centre - distance) : centre + distance + 1]

    def _ask(self, place: int, taps: Sequence[str], share: float) -> Mapping[str, float]:
        whole = max(self.costs.values())
        self.spent += share * max(self.costs[tap] for tap in taps) / whole
        return self.measure(self.timesteps[place], taps, share)


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
