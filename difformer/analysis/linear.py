"""What linear classifiers on fixed features share: standardised inputs, the fitted layer, the choice among several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.analysis._inputs import Array, as_matrix
from difformer.analysis.metrics import accuracy


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A linear layer on features as they are: the standardisation it was fitted with is folded into it.

    Attributes:
        weight: (C, D).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Array) -> Tensor:
        """Args: features, (N, D) finite. Returns (N, C) in the weights' dtype, on their device. Raises ValueError:
        another shape or type, or a value that is not finite."""
        x = as_matrix("features", features, width=self.weight.shape[1])
        return F.linear(x.to(self.weight.device, self.weight.dtype), self.weight, self.bias)


class Fit(Protocol):
    """A fitted model and the strength it was regularised with."""

    @property
    def model(self) -> LinearModel:
        """The layer."""

    @property
    def l2(self) -> float:
        """Strength of the penalty on the standardised weights."""


FitT = TypeVar("FitT", bound=Fit)


def choose(fits: Sequence[FitT], features: Array, labels: Array, *, criterion: str = "top1") -> FitT:
    """The fit that classifies validation images best; of equal ones, the most strongly regularised.

    Args:
        fits: one or more.
        features: (N, D) finite, of the validation images.
        labels: (N,) integers in [0, C).
        criterion: top1 or mean_per_class, which averages the accuracies of the classes that have images.

    Raises:
        ValueError: no fits, wrong shapes, types or ranges.
    """
    if not fits:
        raise ValueError("there are no fits to choose from")
    return max(fits, key=lambda fit: (accuracy(fit.model.logits(features), labels, criterion), fit.l2))


@dataclass(frozen=True, eq=False)
class Standardised:
    """Training features with mean 0 and variance 1 in each column, and the way back.

    Attributes:
        x: (N, D); columns that do not vary are 0.
        mean: (D,) of the features.
        scale: (D,) their standard deviation (dividing by N), 1 for columns that do not vary.
    """

    x: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor, dtype: torch.dtype) -> "Standardised":
        """Args: features, (N, D) finite; dtype, float32 or float64. Raises ValueError: another dtype."""
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        features = features.to(dtype)
        mean = features.mean(dim=0)
        x = features - mean
        deviation = x.square().mean(dim=0).sqrt()
        # A constant column's deviation is the rounding of its mean; divided by that it would become noise.
        constant = deviation <= 10 * torch.finfo(dtype).eps * mean.abs()
        scale = deviation.masked_fill(constant, 1)
        return cls(x.div_(scale).masked_fill_(constant, 0), mean, scale)

    def unfold(self, weight: Tensor, bias: Tensor) -> LinearModel:
        """A layer on `x`, weight (C, D) and bias (C,), as a layer on the features as they were."""
        weight = weight / self.scale
        return LinearModel(weight, bias - weight @ self.mean)


def check_strengths(strengths: Sequence[float], name: str = "strengths") -> tuple[float, ...]:
    """Strengths or rates as plain numbers. Raises ValueError: none, repeated, or not positive and finite."""
    checked = tuple(float(value) for value in strengths)
    if not checked or len(set(checked)) < len(checked) or not all(0 < value < math.inf for value in checked):
        raise ValueError(f"{name} must be one or more different positive numbers, got {strengths!r}")
    return checked


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Directions in which rows vary, by the smaller of the two products of the rows with themselves.

    Args:
        x: (N, D) with columns of mean 0.

    Returns:
        Orthonormal directions (D, r), r at most N and D, and the sum of squares (r,) along each, ascending.
    """
    wide = x.shape[1] > x.shape[0]
    spectrum, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    # Directions below this are rounding: they have no variance, and no weight is learnt along them.
    kept = spectrum > spectrum.clamp_min(0).max() * torch.finfo(x.dtype).eps * max(x.shape)
    spectrum, vectors = spectrum[kept], vectors[:, kept]
    # Both products have the same spectrum; the left singular vectors give the right ones.
    return (x.T @ vectors / spectrum.sqrt() if wide else vectors), spectrum
