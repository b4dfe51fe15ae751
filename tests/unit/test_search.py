"""The search for block and timestep on surfaces of known shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.engine.selection.search import Search, greedy_set, pass_costs

TAPS = [f"in{i:02}" for i in range(8)] + ["mid"] + [f"out{i:02}" for i in range(8)]
# As in an ADM network: most of the cost is at its ends.
COSTS = dict(zip(TAPS, np.cumsum([0.3, 6, 2, 2, 1, 0.4, 0.3, 0.4, 0.8, 0.8, 2, 1, 2, 3, 9, 10, 10]), strict=True))
TIMESTEPS = [10, 30, 50, 90, 150, 200, 300, 500]


def surface(block, place, noise=0.0, seed=0):
    """Unimodal in block and timestep; fewer images are a little worse and less certain."""
    rng = np.random.default_rng(seed)

    def accuracy(tap, t):
        across, along = TAPS.index(tap) - block, TIMESTEPS.index(t) - place
        return 0.8 - 0.01 * across**2 - 0.012 * along**2

    def measure(t, taps, share):
        asked.append((t, tuple(taps), share))
        return {tap: accuracy(tap, t) - 0.05 * (1 - share) + noise * rng.normal() for tap in taps}

    asked = []
    return accuracy, measure, asked


def assert_nothing_is_asked_twice(asked):
    for whole in (False, True):
        timesteps = [t for t, _, share in asked if (share == 1) == whole]
        assert len(timesteps) == len(set(timesteps))


@settings(max_examples=60, deadline=None)
@given(block=st.integers(0, 16), place=st.integers(0, 7))
def test_finds_the_best_of_a_unimodal_surface(block, place):
    _, measure, asked = surface(block, place)
    assert Search(measure, TAPS, COSTS, TIMESTEPS).run() == (TAPS[block], TIMESTEPS[place])
    assert_nothing_is_asked_twice(asked)


@settings(max_examples=40, deadline=None)
@given(block=st.integers(7, 12), place=st.integers(0, 7), seed=st.integers(0, 1000))
def test_comes_within_half_a_point_at_a_quarter_of_the_cost_with_noise(block, place, seed):
    accuracy, measure, asked = surface(block, place, noise=0.002, seed=seed)
    search = Search(measure, TAPS, COSTS, TIMESTEPS)
    tap, t = search.run()
    # A step beside the best loses 1.0 over blocks and 1.2 over timesteps.
    assert accuracy(tap, t) >= 0.8 - 0.005
    assert search.spent <= 0.25 * search.grid_cost
    spent = sum(share * max(COSTS[name] for name in taps) for _, taps, share in asked) / max(COSTS.values())
    assert search.spent == pytest.approx(spent)


def test_few_timesteps_are_all_looked_at():
    for count in (1, 2, 3):
        _, measure, asked = surface(8, 0)
        assert Search(measure, TAPS, COSTS, TIMESTEPS[:count]).run() == ("mid", TIMESTEPS[0])
        assert_nothing_is_asked_twice(asked)


def test_passes_are_shared_at_a_timestep():
    costs = {"a": 1.0, "b": 2.0, "c": 5.0}
    assert pass_costs([("a", 1), ("c", 1), ("b", 2)], costs) == 7
    assert pass_costs([], costs) == 0


def test_the_greedy_set_takes_what_helps_most_within_the_budget():
    costs = {"a": 1.0, "b": 2.0, "c": 5.0}
    worth = {("a", 1): 0.3, ("b", 1): 0.2, ("c", 1): 0.5, ("a", 2): 0.1, ("b", 2): 0.0}

    def score(pairs):
        return sum(worth[pair] for pair in pairs)

    assert greedy_set(score, list(worth), costs, budget=6, most=9) == [("c", 1), ("a", 1), ("b", 1), ("a", 2)]
    assert greedy_set(score, list(worth), costs, budget=3, most=9) == [("a", 1), ("b", 1), ("a", 2)]
    assert greedy_set(score, list(worth), costs, budget=6, most=2) == [("c", 1), ("a", 1)]
    assert greedy_set(score, list(worth), costs, budget=0.5, most=2) == []
    assert greedy_set(lambda pairs: 0.0, list(worth), costs, budget=6, most=2) == [("a", 1)]
