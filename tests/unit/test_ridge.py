"""Ridge classification against scikit-learn, the normal equations, and fits that leave each image out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from difformer.analysis import LinearModel, RidgeFit, choose, choose_leave_one_out, ridge_path
from difformer.analysis.linear import Standardised, principal_axes


def data(n, d, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centres = rng.normal(size=(classes, d))
    return (centres[labels] + 2 * rng.normal(size=(n, d))) * rng.uniform(0.1, 10, d) + rng.normal(size=d), labels


def standardised(features):
    return (features - features.mean(axis=0)) / features.std(axis=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 20), st.integers(1, 30), st.sampled_from([1e-3, 0.1, 10]))
def test_against_scikit_learn(seed, n, d, l2):
    """Tall and wide alike."""
    features, labels = data(n, d, seed)
    (found,) = ridge_path(features, labels, 3, strengths=[l2])
    x = standardised(features)
    want = Ridge(alpha=n * l2, solver="svd").fit(x, np.eye(3)[labels]).predict(x)
    np.testing.assert_allclose(found.model.logits(features), want, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(30, 4), (12, 25), (10, 10)])
@pytest.mark.parametrize("l2", [1e-2, 1.0])
@pytest.mark.parametrize("criterion", ["top1", "mean_per_class"])
def test_leaving_one_out_is_fitting_without_it(n, d, l2, criterion):
    features, labels = data(n, d, seed=2)
    x, targets = standardised(features), np.eye(3)[labels]
    correct = []
    for i in range(n):
        others = np.arange(n) != i
        # The penalty of the whole, as the sum over images is what loses one term.
        fitted = Ridge(alpha=n * l2, solver="svd").fit(x[others], targets[others])
        correct.append(fitted.predict(x[i : i + 1])[0].argmax() == labels[i])
    correct = np.array(correct)
    means = [correct[labels == c].mean() for c in np.unique(labels)]
    want = correct.mean() if criterion == "top1" else np.mean(means)
    (found,) = ridge_path(features, labels, 3, strengths=[l2], criterion=criterion)
    assert found.leave_one_out == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(("n", "d", "rank"), [(30, 4, 4), (12, 25, 11)])
def test_the_smaller_side_is_decomposed(n, d, rank, monkeypatch):
    """Centring takes one dimension of the wide features' span."""
    sizes = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    x = torch.from_numpy(standardised(data(n, d)[0]))
    axes, spectrum = principal_axes(x)
    assert sizes == [min(n, d)]
    assert axes.shape == (d, rank)
    torch.testing.assert_close(axes.T @ axes, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close((x @ axes).square().sum(dim=0), spectrum)
    torch.testing.assert_close(x @ axes @ axes.T, x)


def test_repeated_and_constant_columns():
    features, labels = data(30, 4)
    doubled = np.column_stack([features, features, np.full(30, 0.1)])
    (found,) = ridge_path(doubled, labels, 3, strengths=[0.1])
    # Two equal columns share a weight, and pay half for it.
    (want,) = ridge_path(features, labels, 3, strengths=[0.05])
    torch.testing.assert_close(found.model.logits(doubled), want.model.logits(features))
    assert (found.model.weight[:, 8] == 0).all()


def test_features_that_say_nothing_leave_the_frequencies():
    labels = np.array([0, 0, 0, 1])
    (found,) = ridge_path(np.ones((4, 3)), labels, 2, strengths=[1.0])
    torch.testing.assert_close(found.model.logits(np.ones((1, 3)))[0], torch.tensor([0.75, 0.25]).double())
    assert found.leave_one_out == 0.75


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_orders_of_images_and_numbers_of_classes(seed):
    features, labels = data(25, 8)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(25), rng.permutation(3)
    for one, other in zip(
        ridge_path(features, labels, 3), ridge_path(features[order], names[labels][order], 3), strict=True
    ):
        torch.testing.assert_close(other.model.logits(features)[:, names], one.model.logits(features))
        assert one.leave_one_out == other.leave_one_out


def test_classes_without_images_score_zero():
    features, labels = data(25, 8)
    (found,) = ridge_path(features, labels, 5, strengths=[0.1])
    assert found.model.logits(features)[:, 3:].abs().max() < 1e-12


def test_the_order_of_strengths_and_the_choice():
    features, labels = data(60, 10)
    path = ridge_path(features[:40], labels[:40], 3, strengths=(1.0, 1e-3, 1e3))
    assert [fit.l2 for fit in path] == [1, 1e-3, 1e3]
    best = choose(path, features[40:], labels[40:])
    scores = [float((f.model.logits(features[40:]).argmax(1).numpy() == labels[40:]).mean()) for f in path]
    assert scores[path.index(best)] == max(scores)
    model = LinearModel(torch.zeros(1, 1), torch.zeros(1))
    fits = [RidgeFit(model, l2, score) for l2, score in ((0.1, 0.5), (1.0, 0.7), (10.0, 0.7), (100.0, 0.6))]
    assert choose_leave_one_out(fits).l2 == 10
    with pytest.raises(ValueError, match="no fits"):
        choose_leave_one_out([])


def test_float32_is_close():
    features, labels = data(40, 6)
    for one, other in zip(
        ridge_path(features, labels, 3), ridge_path(features, labels, 3, dtype=torch.float32), strict=True
    ):
        assert other.model.bias.dtype == torch.float32
        torch.testing.assert_close(other.model.logits(features).double(), one.model.logits(features), atol=1e-4, rtol=0)


def test_a_penalty_below_rounding():
    """With more features than images each is fitted exactly, and its own part is all but 1."""
    (found,) = ridge_path(*data(10, 40), 3, strengths=[1e-30], dtype=torch.float32)
    assert 0 <= found.leave_one_out <= 1


def test_standardised_features():
    features = torch.from_numpy(data(50, 3)[0])
    found = Standardised.of(features, torch.float64)
    np.testing.assert_allclose(found.x, standardised(features.numpy()), atol=1e-12)
    weight, bias = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    torch.testing.assert_close(found.unfold(weight, bias).logits(features), found.x @ weight.T + bias)
    constant = Standardised.of(torch.full((50, 1), 0.1, dtype=torch.float64), torch.float64)
    assert (constant.x == 0).all()
    assert constant.scale.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.full((20, 4), np.nan)}, "features must be finite"),
        ({"features": np.ones((1, 4)), "labels": np.array([0])}, "at least two images"),
        ({"labels": np.zeros(19, dtype=int)}, "labels must be 20 integers"),
        ({"num_classes": 2}, r"in \[0, 2\)"),
        ({"strengths": [-1.0]}, "positive numbers"),
        ({"dtype": torch.bfloat16}, "float32 or torch.float64"),
        ({"criterion": "f1"}, "criterion must be"),
    ],
)
def test_what_is_refused(changes, message):
    features, _ = data(20, 4)
    arguments = {"features": features, "labels": np.arange(20) % 3, "num_classes": 3} | changes
    with pytest.raises(ValueError, match=message):
        ridge_path(**arguments)


@pytest.mark.gpu
def test_on_a_gpu():
    features, labels = data(12, 25)
    for one, other in zip(
        ridge_path(features, labels, 3), ridge_path(torch.from_numpy(features).cuda(), labels, 3), strict=True
    ):
        assert other.model.weight.is_cuda
        torch.testing.assert_close(other.model.weight.cpu(), one.model.weight)
