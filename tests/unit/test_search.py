"""The search for block and timestep on surfaces of known shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.verbs.select.search import Search, greedy_set, set_cost

TAPS = [f"in{i:02}" for i in range(8)] + ["mid"] + [f"out{i:02}" for i in range(8)]
TIMESTEPS = [10, 30, 50, 90, 150, 200, 300, 500]


def surface(block, t, timesteps=TIMESTEPS, noise=0.0, seed=0):
    """Unimodal in block and timestep; fewer images are a little worse and less certain."""
    rng = np.random.default_rng(seed)
    asked = []

    def accuracy(tap, at):
        across, along = TAPS.index(tap) - block, timesteps.index(at) - timesteps.index(t)
        return 0.8 - 0.01 * across**2 - 0.012 * along**2

    def measure(at, share):
        asked.append((at, share))
        # What a timestep's probes learn from is the same for all of them, and so is a part of what they get wrong.
        common = noise * rng.normal() * (1 - share)
        scores = {tap: accuracy(tap, at) - 0.05 * (1 - share) + common + noise * rng.normal() for tap in TAPS}
        return scores, share

    return accuracy, measure, asked


@settings(max_examples=100, deadline=None)
@given(block=st.integers(0, 16), count=st.integers(1, 40), data=st.data())
def test_finds_the_best_of_a_unimodal_surface(block, count, data):
    timesteps = list(range(0, 10 * count, 10))
    t = data.draw(st.sampled_from(timesteps))
    _, measure, asked = surface(block, t, timesteps)
    assert Search(measure, timesteps).run() == (TAPS[block], t)
    assert len(set(asked)) == len(asked)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(block=st.integers(0, 16), t=st.sampled_from(TIMESTEPS), seed=st.integers(0, 1000))
def test_comes_within_half_a_point_at_a_quarter_of_the_cost_with_noise(block, t, seed):
    accuracy, measure, asked = surface(block, t, noise=0.002, seed=seed)
    search = Search(measure, TIMESTEPS)
    # A step beside the best loses 1.0 over blocks and 1.2 over timesteps.
    assert accuracy(*search.run()) >= 0.8 - 0.005
    assert search.spent == pytest.approx(sum(share for _, share in asked))
    assert search.spent <= 0.25 * len(TIMESTEPS)


@pytest.mark.parametrize("count", [8, 9, 12, 16, 40])
def test_a_larger_grid_costs_a_quarter_too_and_measures_more_of_it_on_all_images(count):
    timesteps = list(range(count))
    _, measure, asked = surface(8, 5, timesteps)
    search = Search(measure, timesteps)
    search.run()
    whole = [t for t, share in asked if share == 1]
    assert whole[0] == 5
    assert search.spent <= 0.25 * count < search.spent + 1


def test_as_many_timesteps_as_are_to_be_fused_are_measured_on_all_images():
    _, measure, asked = surface(8, 90)
    search = Search(measure, TIMESTEPS, whole=3)
    assert search.run() == ("mid", 90)
    assert {t for t, share in asked if share == 1} == {50, 90, 150}
    assert len(search.found) == 3 * len(TAPS)


def test_more_timesteps_than_were_looked_at_can_be_measured():
    _, measure, asked = surface(8, 90)
    Search(measure, TIMESTEPS, whole=8).run()
    assert sorted(t for t, share in asked if share == 1) == TIMESTEPS


def test_what_a_measurement_took_is_what_counts():
    _, measure, asked = surface(8, 90)
    search = Search(lambda t, share: (measure(t, share)[0], 0.5), TIMESTEPS)
    search.run()
    assert search.spent == 0.5 * len(asked)


def test_a_set_costs_its_deepest_tap_at_every_timestep():
    costs = {"a": 1.0, "b": 2.0, "c": 5.0}
    assert set_cost([("a", 1), ("c", 1), ("b", 2)], costs) == 10
    assert set_cost([], costs) == 0


def test_the_greedy_set_takes_what_helps_most_within_the_budget():
    costs = {"a": 1.0, "b": 2.0, "c": 5.0}
    worth = {("a", 1): 0.3, ("b", 1): 0.2, ("c", 1): 0.5, ("a", 2): 0.1, ("b", 2): 0.0}

    def score(pairs):
        return sum(worth[pair] for pair in pairs)

    assert greedy_set(score, list(worth), costs, budget=10, most=9) == [("c", 1), ("a", 1), ("b", 1), ("a", 2)]
    # Another timestep would run to c again.
    assert greedy_set(score, list(worth), costs, budget=6, most=9) == [("c", 1), ("a", 1), ("b", 1)]
    assert greedy_set(score, list(worth), costs, budget=3, most=9) == [("a", 1), ("b", 1)]
    assert greedy_set(score, list(worth), costs, budget=6, most=2) == [("c", 1), ("a", 1)]
    assert greedy_set(score, list(worth), costs, budget=0.5, most=2) == []
    assert greedy_set(lambda pairs: 0.0, list(worth), costs, budget=6, most=2) == [("a", 1)]
