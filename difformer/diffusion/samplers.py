"""From noise to images: ancestral sampling, DDIM, and DDIM backwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difformer.config import as_positive_integer
from difformer.diffusion.noise import image_noise
from difformer.diffusion.objectives import (
    learned_log_variance,
    log_posterior_variance,
    posterior_mean,
    predict_x_0,
    split_output,
)
from difformer.diffusion.schedule import NoiseSchedule

# x_t (B, C, H, W) and t (B,) to (B, C, H, W) eps, or (B, 2C, H, W) with the learned variance.
Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class StridedSchedule:
    """A schedule that visits only some timesteps (section 4 of Nichol & Dhariwal 2021).

    Attributes:
        timesteps: (S,) int64, ascending; what the network receives at each of the S steps.
        schedule: of those steps, with the same alpha_bar there.
    """

    timesteps: Tensor
    schedule: NoiseSchedule

    @classmethod
    def of(cls, schedule: NoiseSchedule, steps: int | None = None) -> "StridedSchedule":
        """`steps` evenly spaced timesteps, the first and the last among them; all of them when None.

        Raises:
            ValueError: steps is not in [1, T].
        """
        total = schedule.num_timesteps
        count = total if steps is None else as_positive_integer("steps", steps)
        if count > total:
            raise ValueError(f"steps must be at most {total}, got {count}")
        timesteps = torch.linspace(0, total - 1, count, dtype=torch.float64, device="cpu").round().long()
        if count == 1:
            timesteps = torch.tensor([total - 1], device="cpu")
        alpha_bar = schedule.alpha_bar[timesteps]
        before = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), alpha_bar[:-1]])
        return cls(timesteps, NoiseSchedule(f"strided {schedule.name}", 1 - alpha_bar / before))


@torch.no_grad()
def sample_ddpm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    clip: bool = True,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Ancestral sampling, algorithm 2 of Ho et al. 2020, on all timesteps or evenly spaced ones.

    Args:
        denoiser: with the learned variance where the network has one; else the posterior's is used.
        schedule: what it was trained with.
        shape: (B, C, H, W).
        steps: how many timesteps to visit; all when None.
        seed: of the noise.
        ids: (B,) numbers of the samples, which their noise depends on; their places when left out.
        clip: keep the predicted x_0 in [-1, 1].
        device: where to run.
        on_step: called after each step.

    Returns:
        x_0 (B, C, H, W) float32.
    """
    strided = StridedSchedule.of(schedule, steps)
    x, numbers = _start(schedule, shape, seed, ids, device)
    for index in reversed(range(len(strided.timesteps))):
        step = torch.full((len(x),), index, device=x.device)
        timestep = int(strided.timesteps[index])
        eps, fraction = split_output(denoiser(x, torch.full_like(step, timestep)).float(), x.shape[1])
        x_0 = predict_x_0(x, step, eps, strided.schedule)
        mean = posterior_mean(x_0.clamp(-1, 1) if clip else x_0, x, step, strided.schedule)
        if fraction is None:
            log_variance = log_posterior_variance(strided.schedule)[index].float().to(x.device)
        else:
            log_variance = learned_log_variance(fraction, step, strided.schedule)
        noise = image_noise(x, numbers, timestep, seed=seed)
        x = mean + (0.5 * log_variance).exp() * noise if index else mean
        if on_step is not None:
            on_step()
    return x


@torch.no_grad()
def sample_ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    *,
    steps: int | None = 50,
    eta: float = 0.0,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    clip: bool = True,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """DDIM, eq. 12 of Song et al. 2021.

    Args:
        denoiser, schedule, shape, steps, seed, ids, clip, device, on_step: as for `sample_ddpm`.
        eta: 0 is deterministic, 1 has the noise of ancestral sampling.
        start: x_T to begin with, in place of noise.

    Returns:
        x_0 (B, C, H, W) float32.

    Raises:
        ValueError: eta is not in [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    strided = StridedSchedule.of(schedule, steps)
    x, numbers = _start(schedule, shape, seed, ids, device)
    x = x if start is None else start.to(x)
    alpha_bar = strided.schedule.alpha_bar
    for index in reversed(range(len(strided.timesteps))):
        timestep = int(strided.timesteps[index])
        now, before = float(alpha_bar[index]), float(alpha_bar[index - 1]) if index else 1.0
        x_0, eps = _predict(denoiser, x, timestep, now, clip=clip)
        sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)) ** 0.5
        x = before**0.5 * x_0 + max(0.0, 1 - before - sigma**2) ** 0.5 * eps
        if sigma:
            x = x + sigma * image_noise(x, numbers, timestep, seed=seed)
        if on_step is not None:
            on_step()
    return x


@torch.no_grad()
def invert_ddim(denoiser: Denoiser, schedule: NoiseSchedule, x_0: Tensor, *, steps: int | None = 50) -> Tensor:
    """The x_T from which deterministic DDIM gives back the images, up to the accuracy of its steps.

    Args:
        denoiser, schedule, steps: as for `sample_ddim`.
        x_0: (B, C, H, W) in [-1, 1].

    Returns:
        x_T (B, C, H, W) float32.
    """
    strided = StridedSchedule.of(schedule, steps)
    x = x_0.float()
    before = 1.0
    for timestep, now in zip(strided.timesteps.tolist(), strided.schedule.alpha_bar.tolist(), strict=True):
        found, eps = _predict(denoiser, x, timestep, before, clip=False)
        x = now**0.5 * found + (1 - now) ** 0.5 * eps
        before = now
    return x


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float, channels: int = 3) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): eps moves away from what it is without the condition.

    Args:
        conditional, unconditional: the network with its label, and with the null label.
        scale: 0 leaves the conditional one as it is.
        channels: of the images.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        output = conditional(x_t, t)
        without, _ = split_output(unconditional(x_t, t), channels)
        eps, fraction = split_output(output, channels)
        eps = (1 + scale) * eps - scale * without
        return eps if fraction is None else torch.cat([eps, fraction], dim=1)

    return denoise


def _predict(denoiser: Denoiser, x: Tensor, timestep: int, alpha_bar: float, *, clip: bool) -> tuple[Tensor, Tensor]:
    """x_0 and eps that agree with each other, at the noise level x has."""
    t = torch.full((len(x),), timestep, device=x.device)
    eps, _ = split_output(denoiser(x, t).float(), x.shape[1])
    x_0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    if clip and alpha_bar < 1:
        x_0 = x_0.clamp(-1, 1)
        eps = (x - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
    return x_0, eps


def _start(
    schedule: NoiseSchedule, shape: Sequence[int], seed: int, ids: Sequence[int] | None, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """x_T and the samples' numbers; the initial noise has the timestep after the last."""
    like = torch.empty(tuple(shape), device=device)
    numbers = torch.arange(len(like), device=device) if ids is None else torch.as_tensor(ids, device=device)
    return image_noise(like, numbers, schedule.num_timesteps, seed=seed), numbers
