import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difformer.engine.runtime.batches import EpochBatches, create_loader, divide, epoch_order


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
def test_every_image_once_whatever_the_processes(length, size, processes, accumulation):
    order = epoch_order(length, seed=3, epoch=1)
    everyone = [EpochBatches(size, i, processes, accumulation) for i in range(processes)]
    for batches in everyone:
        batches.set(order)
    steps = {batches.steps for batches in everyone}
    assert steps == {-(-length // size)}
    for step in range(steps.pop()):
        shares = [batches.step(step) for batches in everyone]
        # In each part the processes wait for each other.
        assert len({len(share) for share in shares}) == 1
        parts = [part for share in shares for part in share]
        real = [index for part in parts if part.counts for index in part.indices]
        assert real == order[step * size : (step + 1) * size].tolist()


def test_all_processes_take_part_in_a_small_batch():
    parts = [divide([7], index, 3, 2) for index in range(3)]
    assert [[part.counts for part in share] for share in parts] == [[True], [False], [False]]
    assert all(share[0].indices == (7,) for share in parts)


def test_loading_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    loader = create_loader([1, 2, 3], [[0, 1], [2]], list, 0, pin=False)
    assert list(loader) == [[1, 2], [3]]
    assert torch.get_rng_state().equal(before)


def test_a_share_goes_in_parts():
    parts = divide(range(10), 1, 2, 2)
    assert [part.indices for part in parts] == [(5, 6, 7), (8, 9)]


def test_the_loader_starts_at_the_step_asked_for():
    batches = EpochBatches(4, accumulation=2)
    batches.set(np.arange(10), first_step=1)
    assert list(batches) == [[4, 5], [6, 7], [8], [9]]
    assert len(batches) == 4


@pytest.mark.parametrize("shards", [None, np.repeat(np.arange(10), 50)])
def test_orders_differ_between_epochs_and_seeds_and_repeat(shards):
    orders = [epoch_order(500, s, e, shards=shards, shuffle_buffer=40) for s, e in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    for order in orders:
        assert sorted(order.tolist()) == list(range(500))
    assert orders[0].tolist() == orders[3].tolist()
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_samples_of_a_shard_stay_together():
    shards = np.repeat(np.arange(10), 50)
    order = epoch_order(500, 0, 0, shards=shards, shuffle_buffer=40)
    for start in range(0, 500, 50):
        assert len(set(shards[order[start : start + 50]])) <= 3
    first = shards[order[:10]]
    assert first.tolist() != sorted(range(10))
    # Shards come in a random order, and samples move inside them.
    assert np.any(np.diff(order[:50]) != 1)
