"""Multinomial logistic regression on fixed features, by L-BFGS."""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger

import torch
from torch import Tensor

from difformer.analysis._inputs import Array, as_labels, as_matrix
from difformer.analysis.linear import LinearModel, Standardised, check_strengths
from difformer.config import as_positive_integer

_log = getLogger(__name__)

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# For the largest component of the gradient; float32 sums do not get much below 1e-4.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """A fitted regression and how far the optimiser got.

    Attributes:
        model: the layer, on features as they are.
        l2: strength of the penalty.
        objective: the value reached.
        gradient: largest absolute component of the objective's gradient there.
        iterations: used for this strength.
        converged: the gradient is within the tolerance.
    """

    model: LinearModel
    l2: float
    objective: float
    gradient: float
    iterations: int
    converged: bool


def logistic_path(
    features: Array,
    labels: Array,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> tuple[LogisticFit, ...]:
    """Fits for several regularisation strengths, each started from the next stronger one's solution.

    Minimises mean cross-entropy + l2 / 2 · |W|² over the weights W and biases of the standardised features; biases
    are not penalised. scikit-learn's `C` is 1 / (N · l2). The fits start from zero and use no random numbers. A fit
    that has not converged says so, and is logged. Memory: about three copies of the features and four of the logits.

    Args:
        features: (N, D) finite training features; the work is done on their device.
        labels: (N,) integers in [0, num_classes).
        num_classes: C, at least 1. Classes without an image get a bias that makes them improbable.
        strengths: values of l2, positive and different.
        dtype: of the computation, float64 or float32.
        tolerance: of the gradient's largest component; None for 1e-6 in float64 and 1e-4 in float32.
        max_iterations: for each strength.

    Returns:
        One fit for each strength, in the order asked for; see `choose`.

    Raises:
        ValueError: wrong shapes, types or ranges, or a value that is not finite.
    """
    features = as_matrix("features", features)
    classes = as_positive_integer("num_classes", num_classes)
    labels = as_labels(labels, len(features), classes).to(features.device)
    strengths = check_strengths(strengths)
    steps = as_positive_integer("max_iterations", max_iterations)
    data = Standardised.of(features, dtype)
    tolerance = _TOLERANCES[dtype] if tolerance is None else tolerance
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")

    # The last column is the bias.
    parameters = data.x.new_zeros(classes, data.x.shape[1] + 1)
    fits = {}
    for l2 in sorted(strengths, reverse=True):
        objective = _Objective(data.x, labels, parameters, l2)
        value, gradient, iterations = objective.minimise(tolerance, steps)
        converged = gradient <= tolerance
        if not converged:
            _log.warning("l2 = %g: not converged after %d steps, the gradient is %.2g", l2, iterations, gradient)
        model = data.unfold(parameters[:, :-1], parameters[:, -1])
        fits[l2] = LogisticFit(model, l2, value, gradient, iterations, converged)
    return tuple(fits[l2] for l2 in strengths)


class _Objective:
    """Mean cross-entropy with its L2 penalty, as a function of `parameters` (C, D + 1), which it minimises in place.

    The gradient is written out: it is short, and does not depend on the caller's autograd mode.
    """

    def __init__(self, x: Tensor, labels: Tensor, parameters: Tensor, l2: float) -> None:
        self.x, self.labels, self.parameters, self.l2 = x, labels[:, None], parameters, l2

    def evaluate(self) -> Tensor:
        """The value; leaves the gradient in `parameters.grad`."""
        weight, bias = self.parameters[:, :-1], self.parameters[:, -1]
        log_p = torch.addmm(bias, self.x, weight.T).log_softmax(dim=1)
        value = -log_p.gather(1, self.labels).mean() + self.l2 / 2 * weight.square().sum()
        # d / d logits is (p - onehot) / N.
        error = log_p.exp_()
        error.scatter_add_(1, self.labels, error.new_full(self.labels.shape, -1)).div_(len(error))
        slope = torch.addmm(weight, error.T, self.x, beta=self.l2)
        self.parameters.grad = torch.cat([slope, error.sum(dim=0)[:, None]], dim=1)
        return value

    def minimise(self, tolerance: float, max_iterations: int) -> tuple[float, float, int]:
        """Returns the value, the gradient's largest absolute component and the number of iterations."""
        # Small changes of the parameters or the value do not end the fit: only the gradient does.
        optimiser = torch.optim.LBFGS(
            [self.parameters],
            max_iter=max_iterations,
            max_eval=25 * max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        with torch.no_grad():
            optimiser.step(self.evaluate)
            value = float(self.evaluate())
        assert self.parameters.grad is not None
        return value, float(self.parameters.grad.abs().max()), optimiser.state[self.parameters].get("n_iter", 0)
