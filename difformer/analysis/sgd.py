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


def sgd_grid(
    features: Array,
    labels: Array,
    num_classes: int,
    *,
    rates: Sequence[float] = RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[SGDFit, ...]:
    """Trains a linear classifier for every learning rate and weight decay, all on the same batches at the same time.

    Cross-entropy, momentum 0.9 and a cosine schedule to 0, from zero weights on standardised features. Each of them is
    what training it alone would give, up to rounding.

    Args:
        features: (N, D) finite training features; the work is done on their device.
        labels: (N,) integers in [0, num_classes).
        num_classes: C, at least 1.
        rates, weight_decays: different positive numbers.
        epochs: passes over the features.
        batch_size: images a step; the last step of an epoch may have fewer.
        seed: of the order.
        dtype: that is computed in, float32 or float64.

    Returns:
        One fit for each pair, rates outermost.

    Raises:
        ValueError: wrong shapes, types or ranges, a value that is not finite, or rates that made the weights diverge.
    """
    features = as_matrix("features", features)
    classes = as_positive_integer("num_classes", num_classes)
    targets = F.one_hot(as_labels(labels, len(features), classes).to(features.device), classes).to(dtype)
    grid = list(product(check_strengths(rates, "rates"), check_strengths(weight_decays, "weight_decays")))
    size, epochs = as_positive_integer("batch_size", batch_size), as_positive_integer("epochs", epochs)
    data = Standardised.of(features, dtype)
    layers = _Layers(grid, data.x.shape[1], classes, data.x)
    generator = torch.Generator().manual_seed(as_integer("seed", seed))
    total = epochs * -(-len(features) // size)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(size):
            rows = rows.to(features.device)
            layers.step(data.x[rows], targets[rows], 0.5 * (1 + math.cos(math.pi * step / total)))
            step += 1
    return tuple(
        SGDFit(data.unfold(weight.T, bias), rate, decay)
        for weight, bias, (rate, decay) in zip(layers.weight, layers.bias, grid, strict=True)
    )


class _Layers:
    """Linear layers side by side, with the state of their optimiser.

    Args:
        grid: learning rate and weight decay of each of the P.
        width: D.
        classes: C.
        like: a tensor of their dtype and device.
    """

    def __init__(self, grid: Sequence[tuple[float, float]], width: int, classes: int, like: Tensor) -> None:
        self.weight = like.new_zeros(len(grid), width, classes)
        self.bias = like.new_zeros(len(grid), classes)
        self._velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self._rates, self._decays = (like.new_tensor(column) for column in zip(*grid, strict=True))

    def step(self, x: Tensor, targets: Tensor, factor: float) -> None:
        """One update: x (B, D), targets (B, C) one-hot, factor of the learning rates.

        Raises:
            ValueError: weights are no longer finite.
        """
        logits = x @ self.weight + self.bias[:, None]
        # The gradient of the mean cross-entropy.
        error = (logits.softmax(dim=2) - targets) / len(x)
        gradients = x.T @ error + self._decays[:, None, None] * self.weight, error.sum(dim=1)
        for values, velocity, gradient in zip((self.weight, self.bias), self._velocity, gradients, strict=True):
            velocity.mul_(_MOMENTUM).add_(gradient)
            values.sub_(factor * self._rates.view(-1, *[1] * (values.ndim - 1)) * velocity)
        if not logits.isfinite().all():
            raise ValueError(f"the weights diverged; try smaller rates than {float(self._rates.max()):g}")
