import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from difformer import image_noise
from difformer.diffusion.noise import philox4x32

SHAPE = (3, 32, 32)
INT64 = st.integers(-(2**63), 2**63 - 1)


def noise(ids, t=150, seed=0, draw=0, shape=SHAPE):
    return image_noise(torch.empty(len(ids), *shape), ids, t, seed=seed, draw=draw)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    """The known-answer vectors of the Random123 distribution (Salmon et al. 2011)."""
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, expected)]
    found = philox4x32(tuple(torch.tensor([word]) for word in words[0]), tuple(words[1]))
    assert [int(word) for word in found] == words[2]


def test_moments_and_normality():
    x = noise(range(64)).double().flatten().numpy()
    n = len(x)
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.skew(x)) < 4 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(x)) < 4 * (24 / n) ** 0.5
    assert stats.kstest(x, "norm").pvalue > 0.01


@pytest.mark.parametrize("residue", range(4))
def test_each_lane_of_the_generator_is_normal(residue):
    assert stats.kstest(noise(range(32)).flatten(1)[:, residue::4].flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (noise([0, 1, 2, 3]), noise([4, 5, 6, 7])),
        (noise([0, 1, 2, 3]), noise([2**32, 2**32 + 1, 2**32 + 2, 2**32 + 3])),
        (noise([0, 1, 2, 3]), noise([0, 1, 2, 3], t=151)),
        (noise([0, 1, 2, 3]), noise([0, 1, 2, 3], seed=1)),
        (noise([0, 1, 2, 3]), noise([0, 1, 2, 3], seed=2**32)),
        (noise([0, 1, 2, 3]), noise([0, 1, 2, 3], draw=1)),
        (noise([1], t=0), noise([0], t=1)),
        (noise(range(8))[:, 0], noise(range(8))[:, 1]),
        (noise(range(8))[:, :, 1:], noise(range(8))[:, :, :-1]),
        (noise(range(8))[..., 1:], noise(range(8))[..., :-1]),
    ],
    ids=["ids", "high ids", "timesteps", "seeds", "high seeds", "draws", "swapped", "channels", "rows", "columns"],
)
def test_independence(one, other):
    a, b = one.double().flatten().numpy(), other.double().flatten().numpy()
    bound = 4 / len(a) ** 0.5
    assert abs(np.corrcoef(a, b)[0, 1]) < bound
    assert abs(np.corrcoef(a**2, b**2)[0, 1]) < bound


@settings(deadline=None)
@given(
    ids=st.lists(INT64, min_size=1, max_size=6, unique=True),
    seed=INT64,
    t=st.integers(0, 2**16 - 1),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    data=st.data(),
)
def test_an_images_noise_does_not_depend_on_its_batch(ids, seed, t, shape, data):
    whole = noise(ids, t, seed, shape=shape)
    order = data.draw(st.permutations(range(len(ids))))
    subset = order[: data.draw(st.integers(1, len(ids)))]
    assert torch.equal(noise([ids[i] for i in subset], t, seed, shape=shape), whole[list(subset)])
    assert torch.equal(noise(torch.tensor(ids), torch.full((len(ids),), t), seed, shape=shape), whole)
    assert whole.isfinite().all()


def test_timesteps_may_differ_within_a_batch():
    mixed = noise([5, 5, 6], t=torch.tensor([90, 150, 90]))
    assert torch.equal(mixed, torch.cat([noise([5], 90), noise([5], 150), noise([6], 90)]))


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = noise([3])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(noise([3]), first)


def test_empty_batches_work():
    assert noise([]).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [1, 2]}, "ids must be 1 integers"),
        ({"ids": torch.tensor([1.0])}, "ids must be integers"),
        ({"ids": [1], "t": -1}, "t must lie"),
        ({"ids": [1], "t": 2**16}, "t must lie"),
        ({"ids": [1], "t": torch.tensor([1, 2])}, "t must be 1 integers"),
        ({"ids": [1], "t": 0.5}, "t must be integers"),
        ({"ids": [1], "t": True}, "t must be integers"),
        ({"ids": [1], "t": None}, "t must be signed"),
        ({"ids": [2**63]}, "ids must be signed 64-bit integers"),
        ({"ids": ["a"]}, "ids must be signed 64-bit integers"),
        ({"ids": [1], "draw": -1}, "draw must lie"),
        ({"ids": [1], "draw": 0.5}, "draw must be an integer"),
        ({"ids": [1], "draw": True}, "draw must be an integer"),
        ({"ids": [1], "seed": 2**64}, "seed must fit into 64 bits"),
        ({"ids": [1], "seed": -(2**63) - 1}, "seed must fit into 64 bits"),
        ({"ids": [1], "seed": 1.5}, "seed must be an integer"),
        ({"ids": [1], "seed": "1"}, "seed must be an integer"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    arguments = {"t": 1} | arguments
    with pytest.raises(ValueError, match=message):
        image_noise(torch.empty(1, *SHAPE), **arguments)


@pytest.mark.gpu
def test_devices_agree_to_float32_rounding():
    x = torch.empty(8, 3, 64, 64)
    torch.testing.assert_close(
        image_noise(x.cuda(), range(8), 150).cpu(), image_noise(x, range(8), 150), rtol=1e-5, atol=2e-6
    )


def test_seeds_may_be_numpys_and_unsigned():
    assert torch.equal(noise([1], seed=np.int64(5), draw=np.int32(1)), noise([1], seed=5, draw=1))
    assert torch.equal(noise([1], seed=2**64 - 1), noise([1], seed=-1))
