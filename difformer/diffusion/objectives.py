"""What a denoiser is trained on: L_simple, the variational bound, and timesteps to train at."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.diffusion.schedule import NoiseSchedule

# Half the width of a bin of 8-bit pixels in [-1, 1].
_HALF_BIN = 1 / 255
_LOG_2 = math.log(2)


@dataclass(frozen=True)
class Losses:
    """The losses of a batch, each (B,) float32.

    Attributes:
        simple: mean squared error of eps, eq. 14 of Ho et al. 2020.
        bound: the variational bound's term at t in bits a dimension, eq. 5 there; None without a learned variance.
    """

    simple: Tensor
    bound: Tensor | None

    def hybrid(self, weight: float, num_timesteps: int) -> Tensor:
        """L_simple + weight · L_vlb, (B,), eq. 16 of Nichol & Dhariwal 2021; L_vlb is a sum over all timesteps."""
        return self.simple if self.bound is None else self.simple + weight * num_timesteps * self.bound


def denoising_losses(
    output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor, schedule: NoiseSchedule
) -> Losses:
    """Losses of a network's output.

    Args:
        output: (B, C, H, W) eps, or (B, 2C, H, W) eps and the interpolation of the log-variance.
        x_0, x_t, eps: (B, C, H, W).
        t: (B,) integers.
        schedule: the forward process.

    Raises:
        ValueError: the output has another number of channels.
    """
    output = output.float()
    predicted, fraction = split_output(output, x_0.shape[1])
    simple = (predicted - eps).square().flatten(1).mean(dim=1)
    if fraction is None:
        return Losses(simple, None)
    # The bound trains the variance alone (section 3.2 of Nichol & Dhariwal 2021).
    return Losses(simple, bound_term(predicted.detach(), fraction, x_0, x_t, t, schedule))


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """eps, and the interpolation of the log-variance where the network gives one.

    Raises:
        ValueError: the output has neither `channels` nor twice as many.
    """
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] != 2 * channels:
        raise ValueError(f"a denoiser must give {channels} or {2 * channels} channels, got {output.shape[1]}")
    eps, fraction = output.chunk(2, dim=1)
    return eps, fraction


def bound_term(eps: Tensor, fraction: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The bound's term at t, in bits a dimension: a KL divergence, and for t = 0 the likelihood of 8-bit pixels.

    Args:
        eps, fraction: (B, C, H, W) what the network predicts.
        x_0, x_t: (B, C, H, W).
        t: (B,) integers.
        schedule: the forward process.

    Returns:
        (B,) float32.
    """
    true_mean = posterior_mean(x_0, x_t, t, schedule)
    true_log_variance = _at(log_posterior_variance(schedule), t, x_t)
    mean = posterior_mean(predict_x_0(x_t, t, eps, schedule), x_t, t, schedule)
    log_variance = learned_log_variance(fraction, t, schedule)
    kl = 0.5 * (
        log_variance
        - true_log_variance
        - 1
        + (true_log_variance - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )
    likelihood = -_pixel_log_likelihood(x_0, mean, 0.5 * log_variance)
    first = (t == 0).view(-1, *(1,) * (x_0.ndim - 1))
    return torch.where(first, likelihood, kl).flatten(1).mean(dim=1) / _LOG_2


def predict_x_0(x_t: Tensor, t: Tensor, eps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_0 = (x_t - s_t eps) / a_t, eq. 15 of Ho et al. 2020."""
    a_t, s_t = schedule.coefficients(t)
    shape = (-1, *(1,) * (x_t.ndim - 1))
    return (x_t - s_t.view(shape) * eps) / a_t.view(shape)


def posterior_mean(x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0), eq. 7 of Ho et al. 2020."""
    of_x_0, of_x_t = schedule.posterior_mean_coefficients
    return _at(of_x_0, t, x_0) * x_0 + _at(of_x_t, t, x_t) * x_t


def log_posterior_variance(schedule: NoiseSchedule) -> Tensor:
    """(T,) float64; at t = 0, where the variance is 0, its value at t = 1 as in Nichol & Dhariwal 2021."""
    variance = schedule.posterior_variance
    first = variance[1:2] if len(variance) > 1 else schedule.betas[:1]
    return torch.cat([first, variance[1:]]).log()


def learned_log_variance(fraction: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Between the posterior's log-variance and log beta, eq. 15 of Nichol & Dhariwal 2021.

    Args:
        fraction: (B, C, H, W); -1 is the posterior's, 1 is beta's.
        t: (B,) integers.
        schedule: the forward process.
    """
    upper, lower = (_at(table, t, fraction) for table in (schedule.betas.log(), log_posterior_variance(schedule)))
    share = (fraction + 1) / 2
    return share * upper + (1 - share) * lower


class UniformTimesteps:
    """Every timestep as often as any other, with weight 1."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps

    def choose(self, u: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Timesteps and the weights of their losses, each (B,), from (B,) uniform numbers in [0, 1)."""
        return (u * self.num_timesteps).astype(np.int64), np.ones(len(u))

    def update(self, t: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Learns from losses; does nothing here."""

    def state_dict(self) -> dict[str, Any]:
        """What it has learned."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class LossAwareTimesteps(UniformTimesteps):
    """Timesteps in proportion to the root of their mean squared loss (section 3.3 of Nichol & Dhariwal 2021).

    Uniform until each timestep has `history` losses. The weights make the expectation that of uniform sampling.

    Args:
        num_timesteps: T.
        history: losses that are remembered a timestep.
        uniform: share of the probability that is spread evenly.
    """

    def __init__(self, num_timesteps: int, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__(num_timesteps)
        self.uniform = uniform
        self._losses = np.zeros((num_timesteps, history))
        self._counts = np.zeros(num_timesteps, dtype=np.int64)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(T,) of sampling each timestep."""
        even = np.full(self.num_timesteps, 1 / self.num_timesteps)
        if (self._counts < self._losses.shape[1]).any():
            return even
        root = np.sqrt((self._losses**2).mean(axis=1))
        return (1 - self.uniform) * root / root.sum() + self.uniform * even if root.sum() else even

    def choose(self, u: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As `UniformTimesteps.choose`, by the inverse of the cumulative distribution."""
        probabilities = self.probabilities
        t = np.searchsorted(probabilities.cumsum(), u, side="right").clip(max=self.num_timesteps - 1)
        return t, 1 / (self.num_timesteps * probabilities[t])

    def update(self, t: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Remembers the losses, (B,), of timesteps, (B,), the oldest forgotten first."""
        for step, loss in zip(t, losses, strict=True):
            self._losses[step] = np.roll(self._losses[step], -1)
            self._losses[step, -1] = loss
            self._counts[step] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"losses": torch.from_numpy(self._losses.copy()), "counts": torch.from_numpy(self._counts.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses[:] = state["losses"].numpy()
        self._counts[:] = state["counts"].numpy()


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """A table's values at (B,) timesteps, to multiply (B, …) with."""
    return table.float().to(t.device)[t].to(like.device).view(-1, *(1,) * (like.ndim - 1))


def _pixel_log_likelihood(x_0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit pixels under a Gaussian, each bin with its mass, the outer ones with the tails."""
    scale = log_scale.exp()
    upper = torch.special.ndtr((x_0 - mean + _HALF_BIN) / scale)
    lower = torch.special.ndtr((x_0 - mean - _HALF_BIN) / scale)
    upper = torch.where(x_0 > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x_0 < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()
