"""Logistic regression against scikit-learn, closed forms, and the choice of a strength."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from difformer.analysis import LinearModel, LogisticFit, accuracy, choose, logistic_path

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(3, size=200)
CENTRES = GENERATOR.normal(size=(3, 5))
FEATURES = (CENTRES[LABELS] + GENERATOR.normal(size=(200, 5))) * [1, 10, 0.01, 1, 1] + [0, 5, 0, -300, 1]


def fit(l2, features=FEATURES, labels=LABELS, num_classes=3, **options):
    return logistic_path(features, labels, num_classes, strengths=[l2], **options)[0]


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_against_scikit_learn(l2, num_classes):
    labels = LABELS % num_classes
    found = fit(l2, labels=labels, num_classes=num_classes, tolerance=1e-8)
    x = StandardScaler().fit_transform(FEATURES)
    # Of two classes theirs has one vector, w; ours are ±w / 2, whose penalty is half of theirs.
    c = 1 / (200 * l2) * (2 if num_classes == 2 else 1)
    other = LogisticRegression(C=c, tol=1e-12, max_iter=10_000, solver="newton-cg").fit(x, labels)
    np.testing.assert_allclose(found.model.logits(FEATURES).softmax(1), other.predict_proba(x), atol=1e-6)


def test_the_layer_gives_the_stated_minimum():
    """The objective and its gradient by autograd, from the layer on standardised features."""
    found = fit(1e-2, tolerance=1e-9)
    x = torch.from_numpy(StandardScaler().fit_transform(FEATURES))
    scale, mean = torch.from_numpy(FEATURES.std(axis=0)), torch.from_numpy(FEATURES.mean(axis=0))
    weight = (found.model.weight * scale).requires_grad_()
    bias = (found.model.bias + found.model.weight @ mean).requires_grad_()
    entropy = torch.nn.functional.cross_entropy(x @ weight.T + bias, torch.from_numpy(LABELS))
    objective = entropy + 1e-2 / 2 * weight.square().sum()
    objective.backward()
    assert found.objective == pytest.approx(objective.item(), rel=1e-12)
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 2e-9
    assert found.converged
    assert found.gradient <= 1e-9
    assert 0 < found.iterations < 100


def test_a_strong_penalty_leaves_the_frequencies():
    p = fit(1e6).model.logits(FEATURES).softmax(1)
    torch.testing.assert_close(p[0], torch.from_numpy(np.bincount(LABELS) / 200), atol=1e-4, rtol=0)


def test_a_path_is_warm_and_in_the_order_asked_for():
    strengths = (1e-2, 1.0, 1e-4)
    path = logistic_path(FEATURES, LABELS, 3, strengths=strengths, tolerance=1e-8)
    assert tuple(f.l2 for f in path) == strengths
    for found in path:
        alone = fit(found.l2, tolerance=1e-8)
        torch.testing.assert_close(found.model.weight, alone.model.weight, atol=1e-4, rtol=1e-4)
        assert found.objective == pytest.approx(alone.objective, rel=1e-9)
    again = logistic_path(FEATURES, LABELS, 3, strengths=[1e-2, 1e-2 * (1 + 1e-9)], tolerance=1e-6)[0]
    assert again.iterations == 0, "the neighbour's solution is where it starts"


def test_it_is_deterministic_in_every_mode_and_leaves_the_generator_alone():
    before, want = torch.get_rng_state().tolist(), fit(1e-3)
    with torch.inference_mode():
        inferred = fit(1e-3)
    for found in (fit(1e-3), inferred):
        assert torch.equal(found.model.weight, want.model.weight)
        assert torch.equal(found.model.bias, want.model.bias)
    assert torch.get_rng_state().tolist() == before
    assert not want.model.weight.requires_grad


def test_what_has_not_converged_says_so(caplog):
    found = fit(1e-4, max_iterations=2, tolerance=1e-8)
    assert not found.converged
    assert found.iterations == 2
    assert found.gradient > 1e-8
    assert "l2 = 0.0001: not converged after 2 steps" in caplog.text


def test_float32_is_close():
    found = fit(1e-2, dtype=torch.float32)
    assert found.converged
    assert found.model.weight.dtype == torch.float32
    torch.testing.assert_close(
        found.model.logits(FEATURES).softmax(1).double(), fit(1e-2).model.logits(FEATURES).softmax(1), atol=5e-3, rtol=0
    )


def test_constant_columns_get_no_weight():
    """0.1 added up is not a multiple of 0.1, so that a constant column seems to vary by rounding."""
    constant = np.column_stack([FEATURES, np.full(200, 0.1), np.zeros(200)])
    found = fit(1e-3, constant).model
    assert (found.weight[:, 5:] == 0).all()
    torch.testing.assert_close(found.weight[:, :5], fit(1e-3).model.weight)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_what_it_does_not_depend_on(seed):
    """The images' order, the classes' numbers, and the units of each feature."""
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(200), rng.permutation(3)
    shift, factor = rng.normal(size=5), rng.uniform(0.1, 10, size=5)
    other = FEATURES * factor + shift
    want = fit(1e-2, tolerance=1e-9).model.logits(FEATURES)
    found = fit(1e-2, other[order], names[LABELS][order], tolerance=1e-9).model.logits(other)
    torch.testing.assert_close(found[:, names], want, atol=1e-6, rtol=0)


def test_classes_without_images_and_a_single_class():
    found = fit(1e-2, num_classes=5)
    p = found.model.logits(FEATURES).softmax(1)
    assert found.converged
    assert p[:, 3:].max() < 1e-4
    torch.testing.assert_close(p[:, :3], fit(1e-2).model.logits(FEATURES).softmax(1), atol=1e-4, rtol=0)
    alone = fit(1e-2, labels=np.zeros(200, dtype=int), num_classes=1)
    assert (alone.objective, alone.converged, alone.iterations) == (0, True, 0)
    assert fit(1e-2, FEATURES[:1], LABELS[:1]).converged


class TestChoose:
    def test_the_best_on_validation_and_of_equals_the_strongest(self):
        path = logistic_path(FEATURES, LABELS, 3, strengths=(1e-3, 1e3, 1e-2))
        scores = {f.l2: accuracy(f.model.logits(FEATURES[:50]), LABELS[:50]) for f in path}
        assert scores[1e3] < max(scores.values())
        best = max(l2 for l2, score in scores.items() if score == max(scores.values()))
        assert choose(path, FEATURES[:50], LABELS[:50]).l2 == best
        model = path[0].model
        equal = [LogisticFit(model, l2, 0.0, 0.0, 1, True) for l2 in (0.1, 10.0, 1.0)]
        assert choose(equal, FEATURES, LABELS).l2 == 10

    def test_the_criterion_counts(self):
        """Three images of class 0 and one of class 1: guessing 0 wins by images, knowing class 1 by classes."""
        features, labels = np.array([[-1.0], [1.0], [1.0], [1.0]]), np.array([1, 0, 0, 0])
        guess = LinearModel(torch.zeros(2, 1).double(), torch.tensor([1.0, 0.0]).double())
        knows = LinearModel(torch.zeros(2, 1).double(), torch.tensor([0.0, 1.0]).double())
        mixed = np.array([[-1.0], [1.0], [2.0], [3.0]])
        good = LinearModel(torch.tensor([[1.0], [0.0]]).double(), torch.tensor([-2.5, 0.0]).double())
        fits = [LogisticFit(m, float(i + 1), 0.0, 0.0, 1, True) for i, m in enumerate((knows, guess, good))]
        assert choose(fits[:2], features, labels).model is guess
        assert accuracy(good.logits(mixed), labels) == 0.5
        assert accuracy(good.logits(mixed), labels, "mean_per_class") == pytest.approx((1 + 1 / 3) / 2)
        assert choose(fits[1:], mixed, labels).model is guess
        assert choose(fits[1:], mixed, labels, criterion="mean_per_class").model is good

    def test_classes_without_images_are_left_out(self):
        logits, labels = np.eye(4)[[1, 1, 3, 1]], np.array([1, 1, 3, 3])
        assert accuracy(logits, labels, "mean_per_class") == (1 + 1 / 2) / 2

    def test_what_is_refused(self):
        with pytest.raises(ValueError, match="no fits"):
            choose([], FEATURES, LABELS)
        with pytest.raises(ValueError, match="'top1' or 'mean_per_class', got 'f1'"):
            choose([fit(1.0)], FEATURES, LABELS, criterion="f1")
        with pytest.raises(ValueError, match="features must have 5 columns"):
            choose([fit(1.0)], FEATURES[:, :4], LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.where(FEATURES > 0, np.inf, FEATURES)}, "features must be finite"),
        ({"features": FEATURES[:0], "labels": LABELS[:0]}, r"\(0, 5\)"),
        ({"features": FEATURES[:, :0]}, r"\(200, 0\)"),
        ({"labels": LABELS[:-1]}, "labels must be 200 integers"),
        ({"num_classes": 2}, r"in \[0, 2\)"),
        ({"strengths": [0.0]}, "positive numbers"),
        ({"strengths": []}, "one or more"),
        ({"strengths": [1.0, 1.0]}, "different"),
        ({"strengths": [math.inf]}, "positive numbers"),
        ({"dtype": torch.float16}, "float32 or torch.float64, got torch.float16"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"max_iterations": 0}, "max_iterations must be a positive integer"),
    ],
)
def test_what_is_refused(changes, message):
    arguments = {"features": FEATURES, "labels": LABELS, "num_classes": 3} | changes
    with pytest.raises(ValueError, match=message):
        logistic_path(**arguments)


@pytest.mark.gpu
def test_on_a_gpu():
    found = fit(1e-2, torch.from_numpy(FEATURES).cuda(), tolerance=1e-8).model
    assert found.weight.is_cuda
    torch.testing.assert_close(found.weight.cpu(), fit(1e-2, tolerance=1e-8).model.weight, atol=1e-5, rtol=1e-5)
