"""Linear probes by gradient descent: a grid at once against each alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from difformer.analysis import sgd_grids
from difformer.analysis.linear import accuracy


def problem(n=90, d=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, d, generator=generator)
    return 5 + 3 * (centres[labels] + torch.randn(n, d, generator=generator)), labels


def trained_alone(features, labels, rate, decay, *, epochs, batch_size, seed):
    """torch's layer and optimiser, on the same batches."""
    mean, deviation = features.mean(dim=0), features.std(dim=0, unbiased=False)
    x = (features - mean) / deviation
    layer = torch.nn.Linear(features.shape[1], int(labels.max()) + 1, dtype=features.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    total, step = epochs * math.ceil(len(x) / batch_size), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / total))
            optimizer.zero_grad()
            F.cross_entropy(layer(x[rows]), labels[rows]).backward()
            optimizer.step()
            step += 1
    return layer(x).detach()


def test_a_grid_at_once_is_each_alone():
    features, labels = problem()
    features = features.double()
    how = {"epochs": 4, "batch_size": 32, "seed": 3}
    fits = sgd_grids([features], labels, 3, rates=[0.01, 0.2], weight_decays=[1e-4, 0.1], dtype=torch.float64, **how)[0]
    assert [(fit.rate, fit.l2) for fit in fits] == [(0.01, 1e-4), (0.01, 0.1), (0.2, 1e-4), (0.2, 0.1)]
    for fit in fits:
        alone = trained_alone(features, labels, fit.rate, fit.l2, **how)
        torch.testing.assert_close(fit.model.logits(features), alone, rtol=1e-9, atol=1e-9)


def test_features_at_once_are_each_alone():
    (first, labels), (second, _) = problem(), problem(seed=5)
    how = {"epochs": 4, "batch_size": 32, "rates": [0.01, 0.2], "weight_decays": [1e-4, 0.1]}
    together = sgd_grids([first, second], labels, 3, **how)
    for features, fits in zip((first, second), together, strict=True):
        for fit, alone in zip(fits, sgd_grids([features], labels, 3, **how)[0], strict=True):
            assert (fit.rate, fit.l2) == (alone.rate, alone.l2)
            torch.testing.assert_close(fit.model.weight, alone.model.weight, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(fit.model.bias, alone.model.bias, rtol=1e-4, atol=1e-5)
    assert not together[0][0].model.weight.allclose(together[1][0].model.weight)


@pytest.mark.parametrize("features", [[], [torch.ones(4, 3), torch.ones(4, 2)]])
def test_features_of_different_shapes(features):
    with pytest.raises(ValueError, match="features must be at least one, all of one shape and on one device"):
        sgd_grids(features, torch.tensor([0, 1, 2, 0]), 3)


def test_learns_and_repeats():
    features, labels = problem()
    fits, again = (sgd_grids([features], labels, 3, epochs=20, batch_size=30)[0] for _ in range(2))
    assert max(accuracy(fit.model.logits(features), labels) for fit in fits) > 0.95
    assert all(one.model.weight.equal(other.model.weight) for one, other in zip(fits, again, strict=True))
    other = sgd_grids([features], labels, 3, epochs=20, batch_size=30, seed=1)[0]
    assert not other[0].model.weight.equal(fits[0].model.weight)


def test_features_say_the_device_whatever_the_default():
    features, labels = problem()
    with torch.device("meta"):
        fits = sgd_grids([features], labels, 3, epochs=1)[0]
    expected = sgd_grids([features], labels, 3, epochs=1)[0]
    assert all(one.model.weight.equal(other.model.weight) for one, other in zip(fits, expected, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [1e30]}, "the weights diverged; try smaller rates than 1e"),
        ({"rates": []}, "rates must be one or more"),
        ({"weight_decays": [0.1, 0.1]}, "weight_decays must be one or more"),
        ({"epochs": 0}, "epochs"),
        ({"labels": torch.full((90,), 7)}, "labels must lie in"),
        ({"dtype": torch.float16}, "dtype must be"),
    ],
)
def test_wrong_input(changes, message):
    features, labels = problem()
    labels = changes.pop("labels", labels)
    with pytest.raises(ValueError, match=message):
        sgd_grids([features], labels, 3, **changes)
