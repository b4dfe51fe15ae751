"""Ridge classification in closed form: least squares on one-hot targets, all strengths from one decomposition."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from difformer.analysis._inputs import Array, as_labels, as_matrix
from difformer.analysis.linear import LinearModel, Standardised, check_strengths, principal_axes
from difformer.analysis.metrics import measure
from difformer.config import as_positive_integer

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A fitted classifier and its leave-one-out score.

    Attributes:
        model: the layer, on features as they are. Its outputs estimate one-hot targets; they are no log-probabilities.
        l2: strength of the penalty.
        leave_one_out: the criterion's number on the training images, each classified by the fit to all the others.
    """

    model: LinearModel
    l2: float
    leave_one_out: float


def ridge_path(
    features: Array,
    labels: Array,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    dtype: torch.dtype = torch.float64,
    criterion: str = "top1",
) -> tuple[RidgeFit, ...]:
    """Fits for several regularisation strengths.

    Minimises mean |y - W x - b|² + l2 · |W|² over the standardised features x and one-hot targets y. scikit-learn's
    `alpha` is N · l2. Decomposes a matrix of the smaller side of the features. The leave-one-out predictions are
    those of N fits, in closed form (Hastie, Tibshirani & Friedman 2009, section 7.10), with the standardisation of
    all images.

    Args:
        features: (N, D) finite training features, N at least 2; the work is done on their device.
        labels: (N,) integers in [0, num_classes).
        num_classes: C, at least 1.
        strengths: values of l2, positive and different.
        dtype: of the computation, float64 or float32.
        criterion: what is measured by leaving one out, top1 or another metric, see `find_metric`.

    Returns:
        One fit for each strength, in the order asked for; see `choose` and `choose_leave_one_out`.

    Raises:
        ValueError: wrong shapes, types or ranges, or a value that is not finite; or as `measure`.
    """
    features = as_matrix("features", features)
    size = len(features)
    if size < 2:
        raise ValueError("ridge classification needs at least two images")
    classes = as_positive_integer("num_classes", num_classes)
    labels = as_labels(labels, size, classes).to(features.device)
    strengths = check_strengths(strengths)
    data = Standardised.of(features, dtype)
    targets = F.one_hot(labels, classes).to(dtype)
    bias = targets.mean(dim=0)

    # In the coordinates z along the principal axes, the normal equations are diagonal: (spectrum + N · l2) w = zᵀ y.
    axes, spectrum = principal_axes(data.x)
    z = data.x @ axes
    moments = z.T @ (targets - bias)
    fits = []
    for l2 in strengths:
        shrinkage = 1 / (spectrum + size * l2)
        weight = shrinkage[:, None] * moments
        # An image pulls its own prediction towards its target with this weight; 1 / N is the bias's part.
        leverage = 1 / size + z.square() @ shrinkage
        remainder = (1 - leverage).clamp_min(torch.finfo(dtype).eps)
        unseen = targets - (targets - bias - z @ weight) / remainder[:, None]
        model = data.unfold((axes @ weight).T, bias)
        fits.append(RidgeFit(model, l2, measure(unseen, labels, criterion)))
    return tuple(fits)


def choose_leave_one_out(fits: Sequence[RidgeFit], *, larger_is_better: bool = True) -> RidgeFit:
    """The fit with the best leave-one-out number; of equal ones, the most strongly regularised.

    Args:
        fits: one or more.
        larger_is_better: of the criterion they were measured by.

    Raises:
        ValueError: no fits.
    """
    if not fits:
        raise ValueError("there are no fits to choose from")
    sign = 1 if larger_is_better else -1
    return max(fits, key=lambda fit: (sign * fit.leave_one_out, fit.l2))
