"""Principal components against closed forms, and what they do not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.analysis import pca_maps, principal_components


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]


def features(rng, *, images=3, channels=6, height=4, width=5):
    """Channels of very different variance, so that components are well apart."""
    scales = 2.0 ** -np.arange(channels)[:, None, None]
    return torch.from_numpy(rng.normal(size=(images, channels, height, width)) * scales)


def test_against_a_known_decomposition():
    rng = np.random.default_rng(0)
    lengths = np.array([5.0, 3.0, 1.0, 0.5])
    # Without the constant column, the others have mean 0.
    left = orthonormal(rng, 40, 5)
    left = np.linalg.qr(np.c_[np.ones(40), left])[0][:, 1:5]
    rows = left * lengths @ orthonormal(rng, 7, 4).T + 100
    found = principal_components(rows, 3)
    signs = np.sign(left[np.abs(left).argmax(axis=0), range(4)])
    np.testing.assert_allclose(found.scores, (left * lengths * signs)[:, :3], atol=1e-10)
    np.testing.assert_allclose(found.explained, lengths[:3] ** 2 / (lengths**2).sum(), atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(1, 12), st.integers(1, 14))
def test_the_first_components_explain_most(seed, count, channels, components):
    rows = np.random.default_rng(seed).normal(size=(count, channels))
    found = principal_components(rows, components)
    assert found.scores.shape == (count, components)
    assert (found.explained.diff() <= 0).all()
    assert ((found.explained >= 0) & (found.explained <= 1 + 1e-12)).all()
    if components >= min(count - 1, channels):
        assert found.explained.sum().item() == pytest.approx(1)
    variances = found.scores.square().sum(dim=0) / np.square(rows - rows.mean(axis=0)).sum()
    torch.testing.assert_close(variances, found.explained)
    assert (found.scores.max(dim=0).values >= -found.scores.min(dim=0).values).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 100))
def test_maps_do_not_depend_on_rotation_shift_or_scale_of_the_channels(seed, scale):
    rng = np.random.default_rng(seed)
    original = features(rng)
    rotation = torch.from_numpy(orthonormal(rng, 6, 6))
    moved = scale * torch.einsum("nchw,cd->ndhw", original, rotation) + torch.from_numpy(rng.normal(size=(6, 1, 1)))
    torch.testing.assert_close(pca_maps(moved), pca_maps(original), atol=1e-4, rtol=0)


def test_maps_follow_the_order_of_images_and_positions():
    original = features(np.random.default_rng(1))
    maps = pca_maps(original)
    assert maps.shape == (3, 4, 5, 3)
    assert maps.dtype == torch.float32
    assert maps.min() == 0
    assert maps.max() == 1
    torch.testing.assert_close(pca_maps(original[[2, 0, 1]]), maps[[2, 0, 1]])
    torch.testing.assert_close(pca_maps(original.flip(3)), maps.flip(2))


def test_features_of_rank_one_have_one_component():
    ramp = torch.linspace(-1, 2, 2 * 5 * 5, dtype=torch.float64).view(2, 1, 5, 5)
    direction = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64).view(1, 4, 1, 1)
    maps = pca_maps(ramp * direction + 7)
    low, high = np.percentile(ramp, [2, 98])
    rising = ((ramp[:, 0] - low) / (high - low)).clamp(0, 1).float()
    # The ends are equally far from the mean, so that rounding decides which of them is the bright one.
    first = maps[..., 0]
    torch.testing.assert_close(first if first[0, 0, 0] < 0.5 else 1 - first, rising)
    assert (maps[..., 1:] == 0.5).all()


def test_what_is_missing_is_grey():
    assert (pca_maps(torch.full((2, 5, 3, 3), 0.1)) == 0.5).all()
    maps = pca_maps(torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert maps.shape == (2, 4, 4, 3)
    assert (maps[..., 2] == 0.5).all()
    assert pca_maps(torch.rand(1, 3, 1, 1), 2).tolist() == [[[[0.5, 0.5]]]]


def test_an_extreme_position_leaves_the_others_their_contrast():
    values = torch.arange(100.0)
    values[7] = 1e6
    maps = pca_maps(values.view(1, 1, 10, 10), 1)
    others = maps.flatten()[torch.arange(100) != 7]
    assert maps.flatten()[7] == 1
    assert others.min() == 0
    assert others.median() == pytest.approx(0.5, abs=0.02)


def test_short_types_are_read():
    original = features(np.random.default_rng(2))
    torch.testing.assert_close(pca_maps(original.bfloat16()), pca_maps(original), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("values", "components", "message"),
    [
        (torch.ones(3, 4, 5), 3, r"shape \(N, C, h, w\), got \(3, 4, 5\)"),
        (torch.full((1, 2, 3, 3), torch.nan), 3, "rows must be finite"),
        (torch.ones(1, 2, 3, 3, dtype=torch.int64), 3, "floating-point"),
        (torch.ones(1, 2, 3, 3), 0, "components"),
    ],
)
def test_wrong_features_are_refused(values, components, message):
    with pytest.raises(ValueError, match=message):
        pca_maps(values, components)
