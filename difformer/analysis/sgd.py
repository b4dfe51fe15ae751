"""Linear classifiers trained by stochastic gradient descent, a whole grid of settings in one computation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.analysis._inputs import Array, as_labels, as_matrix
from difformer.analysis.linear import LinearModel, Standardised, check_strengths
from difformer.config import as_integer, as_positive_integer

RATES = (0.003, 0.01, 0.03, 0.1)
WEIGHT_DECAYS = (1e-5, 1e-3, 1e-2)
_MOMENTUM = 0.9


@dataclass(frozen=True, eq=False)
class SGDFit:
    """A trained classifier and its settings.

    Attributes:
        model: the layer, on features as they are.
        rate: the learning rate it began with.
        l2: weight decay of the standardised weights; biases have none.
    """

    model: LinearModel
    rate: float
    l2: float


def sgd_grids(
    features: Sequence[Array],
    labels: Array,
    num_classes: int,
    *,
    rates: Sequence[float] = RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[tuple[SGDFit, ...], ...]:
    """Trains a linear classifier for every feature, learning rate and weight decay, all at the same time.

    Cross-entropy, momentum 0.9 and a cosine schedule to 0, from zero weights on standardised features, the same images
    in each step. Each classifier is the one that training it alone would give, up to rounding.

    Args:
        features: at least one, all (N, D), finite and on the same device, on which the work is done.
        labels: (N,) integers in [0, num_classes).
        num_classes: C, at least 1.
        rates, weight_decays: different positive numbers.
        epochs: passes over the features.
        batch_size: images a step; the last step of an epoch may have fewer.
        seed: of the order.
        dtype: of the computation, float32 or float64.

    Returns:
        For each feature, one fit for each pair, rates outermost.

    Raises:
        ValueError: wrong shapes, types or ranges, a value that is not finite, or rates that made the weights diverge.
    """
    matrices = [as_matrix("features", matrix) for matrix in features]
    if len({(matrix.shape, matrix.device) for matrix in matrices}) != 1:
        shapes = [(tuple(matrix.shape), str(matrix.device)) for matrix in matrices]
        raise ValueError(f"features must be at least one, all of one shape and on one device, got {shapes}")
    count, device = len(matrices[0]), matrices[0].device
    classes = as_positive_integer("num_classes", num_classes)
    targets = F.one_hot(as_labels(labels, count, classes).to(device), classes).to(dtype)
    grid = list(product(check_strengths(rates, "rates"), check_strengths(weight_decays, "weight_decays")))
    size, epochs = as_positive_integer("batch_size", batch_size), as_positive_integer("epochs", epochs)
    data = [Standardised.of(matrix, dtype) for matrix in matrices]
    layers = _Layers(grid, len(data), data[0].x.shape[1], targets)
    generator = torch.Generator().manual_seed(as_integer("seed", seed))
    total = epochs * -(-count // size)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=generator, device="cpu").split(size):
            rows = rows.to(device)
            x = torch.stack([one.x[rows] for one in data])
            layers.step(x, targets[rows], 0.5 * (1 + math.cos(math.pi * step / total)))
            step += 1
    return tuple(layers.fits(place, one, grid) for place, one in enumerate(data))


class _Layers:
    """Linear layers side by side, with the state of their optimiser.

    Args:
        grid: learning rate and weight decay of each of a feature's P layers.
        features: F.
        width: D.
        targets: (N, C); the layers have its C, dtype and device.
    """

    def __init__(self, grid: Sequence[tuple[float, float]], features: int, width: int, targets: Tensor) -> None:
        self._shape = len(grid), targets.shape[1]
        # A feature's layers lie side by side, so that one product gives all their logits.
        self._weight = targets.new_zeros(features, width, math.prod(self._shape))
        self._bias = targets.new_zeros(features, 1, math.prod(self._shape))
        self._velocity = torch.zeros_like(self._weight), torch.zeros_like(self._bias)
        self._rates, self._decays = (
            targets.new_tensor(column).repeat_interleave(targets.shape[1]) for column in zip(*grid, strict=True)
        )

    def step(self, x: Tensor, targets: Tensor, factor: float) -> None:
        """One update: x (F, B, D), targets (B, C) one-hot, factor of the learning rates.

        Raises:
            ValueError: weights are no longer finite.
        """
        logits = torch.baddbmm(self._bias, x, self._weight)
        # The gradient of the mean cross-entropy.
        probabilities = logits.unflatten(2, self._shape).softmax(dim=3)
        error = ((probabilities - targets[:, None]) / len(targets)).flatten(2)
        gradients = torch.bmm(x.mT, error) + self._decays * self._weight, error.sum(dim=1, keepdim=True)
        for values, velocity, gradient in zip((self._weight, self._bias), self._velocity, gradients, strict=True):
            velocity.mul_(_MOMENTUM).add_(gradient)
            values.sub_(factor * self._rates * velocity)
        if not logits.isfinite().all():
            raise ValueError(f"the weights diverged; try smaller rates than {float(self._rates.max()):g}")

    def fits(self, feature: int, data: Standardised, grid: Sequence[tuple[float, float]]) -> tuple[SGDFit, ...]:
        """The fits of one feature, on features as they are."""
        weights = self._weight[feature].unflatten(1, self._shape).unbind(1)
        biases = self._bias[feature, 0].unflatten(0, self._shape)
        return tuple(
            SGDFit(data.unfold(weight.T, bias), rate, decay)
            for weight, bias, (rate, decay) in zip(weights, biases, grid, strict=True)
        )
