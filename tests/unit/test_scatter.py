"""The label-free criterion against closed forms."""

import numpy as np
import pytest
import torch

from difformer.analysis import view_criterion


def draw(between, within, *, images=4000, views=4, seed=0):
    """Views of images, with known standard deviations of image means and of views around them."""
    rng = np.random.default_rng(seed)
    width = len(between)
    means = rng.normal(size=(images, 1, width)) * between
    return torch.from_numpy(means + rng.normal(size=(images, views, width)) * within)


def test_against_the_eigenvalues_that_are_known():
    between, within = np.array([2.0, 1.0, 0.5]), np.array([1.0, 0.5, 1.0])
    expected = 1 / (1 + np.mean(between**2 / within**2))
    assert view_criterion(draw(between, within), shrinkage=1e-9) == pytest.approx(expected, rel=0.05)


def test_linear_maps_change_nothing():
    views = draw(np.array([2.0, 1.0, 0.5]), np.ones(3), images=100)
    mixed = views @ torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 7
    found = view_criterion(views, shrinkage=1e-12)
    assert view_criterion(mixed, shrinkage=1e-12) == pytest.approx(found)


def test_it_orders_features_by_how_well_they_tell_images_apart():
    values = [view_criterion(draw(np.full(5, scale), np.ones(5), images=300)) for scale in (0.0, 0.5, 1.0, 3.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_features_that_do_not_vary_are_worst(value):
    assert view_criterion(np.full((5, 3, 4), value)) == 1.0


def test_views_that_are_all_the_same_are_refused():
    views = draw(np.ones(3), np.ones(3), images=5)[:, :1].expand(-1, 3, -1)
    with pytest.raises(ValueError, match="views of each image are all the same, so there is no scatter within"):
        view_criterion(views)


@pytest.mark.parametrize("shape", [(1, 3, 4), (5, 1, 4), (5, 4)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match=r"views must be of shape \(N, V, D\)"):
        view_criterion(np.zeros(shape))
    with pytest.raises(ValueError, match="shrinkage must be above 0"):
        view_criterion(np.zeros((2, 2, 2)), shrinkage=0)
