"""From noise to images: ancestral sampling, DDIM, DPM-Solver++, and DDIM backwards."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from difformer.config import check_choice
from difformer.diffusion.noise import image_noise
from difformer.diffusion.objectives import (
    learned_log_variance,
    log_posterior_variance,
    posterior_mean,
    predict_x_0,
    split_output,
)
from difformer.diffusion.schedule import NoiseSchedule
from difformer.diffusion.spacing import Spacing, StridedSchedule, log_snr

# x_t (B, C, H, W) and t (B,) to (B, C, H, W) eps, or (B, 2C, H, W) with the learned variance.
Denoiser = Callable[[Tensor, Tensor], Tensor]
Variance = Literal["small", "large"]


@torch.no_grad()
def sample_ddpm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    spacing: Spacing = "even",
    variance: Variance | None = None,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    clip: bool = True,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Ancestral sampling, algorithm 2 of Ho et al. 2020, on all timesteps or some.

    Args:
        denoiser: with the learned variance where the network has one.
        schedule: what it was trained with.
        shape: (B, C, H, W).
        steps: how many timesteps to visit; all when None.
        spacing: which ones; see `spaced_timesteps`.
        variance: of the noise where the network does not learn it: the posterior's (`small`, which None stands for) or
            beta (`large`), the two of section 3.2 of Ho et al. 2020, and FIXED_SMALL and FIXED_LARGE of
            guided-diffusion.
        seed: of the noise.
        ids: (B,) numbers of the samples, which their noise depends on; their places when left out.
        clip: keep the predicted x_0 in [-1, 1].
        device: where to run.
        on_step: called after each step.

    Returns:
        x_0 (B, C, H, W) float32.

    Raises:
        ValueError: steps that the schedule does not have, or a variance for a network that learns it.
    """
    check_choice("variance", variance, get_args(Variance), optional=True)
    strided = StridedSchedule.of(schedule, steps, spacing)
    fixed = log_posterior_variance(strided.schedule)
    if variance == "large":
        fixed = torch.cat([fixed[:1], strided.schedule.betas[1:].log()])
    x, numbers = _start(schedule, shape, seed, ids, device)
    for index in reversed(range(len(strided.timesteps))):
        step = torch.full((len(x),), index, device=x.device)
        timestep = int(strided.timesteps[index])
        eps, fraction = split_output(denoiser(x, torch.full_like(step, timestep)).float(), x.shape[1])
        x_0 = predict_x_0(x, step, eps, strided.schedule)
        mean = posterior_mean(x_0.clamp(-1, 1) if clip else x_0, x, step, strided.schedule)
        if fraction is None:
            log_variance = fixed[index].float().to(x.device)
        elif variance is not None:
            raise ValueError(f"the network learns its variance; leave out variance, which is {variance!r}")
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
    spacing: Spacing = "even",
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
        denoiser, schedule, shape, steps, spacing, seed, ids, clip, device, on_step: as for `sample_ddpm`.
        eta: 0 is deterministic, 1 has the noise of ancestral sampling.
        start: x_T to begin with, in place of noise.

    Returns:
        x_0 (B, C, H, W) float32.

    Raises:
        ValueError: eta is not in [0, 1], or steps that the schedule does not have.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    strided = StridedSchedule.of(schedule, steps, spacing)
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
def sample_dpm_solver(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    *,
    steps: int | None = 20,
    spacing: Spacing = "log_snr",
    seed: int = 0,
    ids: Sequence[int] | None = None,
    clip: bool = True,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022 (arXiv:2211.01095): images of deterministic DDIM in fewer steps.

    Each step is of second order, since it also has the x_0 of the step before. The first has none, and the last, which
    takes all noise away, is infinitely long in lambda, the solver's time: these two are DDIM's. Evenly spaced timesteps
    make the steps at the end too long in lambda for the second order to help.

    Args:
        denoiser, schedule, shape, steps, spacing, seed, ids, clip, device, on_step: as for `sample_ddpm`.
        start: as for `sample_ddim`.

    Returns:
        x_0 (B, C, H, W) float32.

    Raises:
        ValueError: steps that the schedule does not have.
    """
    strided = StridedSchedule.of(schedule, steps, spacing)
    x, _ = _start(schedule, shape, seed, ids, device)
    x = x if start is None else start.to(x)
    alpha_bar = strided.schedule.alpha_bar.tolist()
    times = log_snr(strided.schedule).tolist()
    earlier, h_earlier = None, 0.0
    for index in reversed(range(len(alpha_bar))):
        x_0, _ = _predict(denoiser, x, int(strided.timesteps[index]), alpha_bar[index], clip=clip)
        if index == 0:
            x = x_0
        else:
            h = times[index - 1] - times[index]
            slope = 0.0 if earlier is None else 0.5 * h / h_earlier
            ahead = x_0 if earlier is None else (1 + slope) * x_0 - slope * earlier
            kept = ((1 - alpha_bar[index - 1]) / (1 - alpha_bar[index])) ** 0.5
            x = kept * x - alpha_bar[index - 1] ** 0.5 * math.expm1(-h) * ahead
            earlier, h_earlier = x_0, h
        if on_step is not None:
            on_step()
    return x


@torch.no_grad()
def invert_ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    *,
    steps: int | None = 50,
    spacing: Spacing = "even",
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """The x_T from which deterministic DDIM gives back the images, up to the accuracy of its steps.

    The equation is DDIM's, followed from images to noise (section 4.3 of Song et al. 2021). `sample_ddim` needs the
    same steps and spacing, and `clip=False`: this does not clip.

    Args:
        denoiser, schedule, steps, spacing, on_step: as for `sample_ddim`.
        x_0: (B, C, H, W) in [-1, 1].

    Returns:
        x_T (B, C, H, W) float32.
    """
    strided = StridedSchedule.of(schedule, steps, spacing)
    x = x_0.float()
    before = 1.0
    for timestep, now in zip(strided.timesteps.tolist(), strided.schedule.alpha_bar.tolist(), strict=True):
        found, eps = _predict(denoiser, x, timestep, before, clip=False)
        x = now**0.5 * found + (1 - now) ** 0.5 * eps
        before = now
        if on_step is not None:
            on_step()
    return x


def interpolate_ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    first: Tensor,
    second: Tensor,
    shares: Sequence[float],
    *,
    steps: int | None = 50,
    spacing: Spacing = "even",
) -> Tensor:
    """Images between pairs of images: both are inverted, and their noise is interpolated on a great circle (section 5.3
    of Song et al. 2021).

    Args:
        denoiser, schedule, steps, spacing: as for `sample_ddim`; the denoiser gets B images at a time.
        first, second: (B, C, H, W) in [-1, 1].
        shares: (K,) of the second image, in [0, 1].

    Returns:
        (K, B, C, H, W) float32, not clipped; at shares 0 and 1 the images themselves, up to the accuracy of the steps.

    Raises:
        ValueError: images of different shapes, or shares that are none or out of range.
    """
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    if not len(shares) or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares must be one or more numbers in [0, 1], got {list(shares)}")
    # On the CPU, since Apple's GPUs have no float64.
    one, other = (
        invert_ddim(denoiser, schedule, image, steps=steps, spacing=spacing).cpu().double().flatten(1)
        for image in (first, second)
    )
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=1)[:, None]
    # Of equal noise, any weights that add up to 1 are right; of opposite noise, any great circle is.
    angle = cosine.clamp(-1, 1).acos().clamp(1e-6, math.pi - 1e-6)
    between = []
    for share in shares:
        mixed = (((1 - share) * angle).sin() * one + (share * angle).sin() * other) / angle.sin()
        image = sample_ddim(
            denoiser, schedule, first.shape,
            steps=steps, spacing=spacing, clip=False, start=mixed.view(first.shape), device=first.device,
        )  # fmt: skip
        between.append(image)
    return torch.stack(between)


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
