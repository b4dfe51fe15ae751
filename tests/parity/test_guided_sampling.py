"""Samplers against guided-diffusion's, and DPM-Solver++ against diffusers'."""

import numpy as np
import pytest
import torch

from difformer.diffusion import (
    NoiseSchedule,
    image_noise,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    spaced_timesteps,
)

pytestmark = pytest.mark.parity
SHAPE = (2, 3, 8, 8)


def network(x, t, **conditioning):
    """Stands for one: not linear, and bounded."""
    return torch.tanh(x.roll(1, dims=-1) * 1.5 - t.view(-1, 1, 1, 1) / 2000)


def learned(x, t, **conditioning):
    return torch.cat([network(x, t), torch.sin(3 * x)], dim=1)


def guided_diffusion(name, respacing, **options):
    from guided_diffusion.script_util import create_gaussian_diffusion

    return create_gaussian_diffusion(steps=1000, noise_schedule=name, timestep_respacing=respacing, **options)


@pytest.mark.parametrize("num_timesteps", [100, 1000, 4000])
def test_spacings_are_guided_diffusions(num_timesteps):
    from guided_diffusion.respace import space_timesteps

    schedule = NoiseSchedule.cosine(num_timesteps)
    for steps in range(1, num_timesteps + 1, 1 if num_timesteps <= 1000 else 7):
        assert spaced_timesteps(schedule, steps, "adm") == sorted(space_timesteps(num_timesteps, str(steps)))
        try:
            theirs = sorted(space_timesteps(num_timesteps, f"ddim{steps}"))
        except ValueError:
            with pytest.raises(ValueError, match="no whole stride"):
                spaced_timesteps(schedule, steps, "ddim")
        else:
            assert spaced_timesteps(schedule, steps, "ddim") == theirs


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_is_guided_diffusions(name):
    theirs = guided_diffusion(name, "ddim25")
    x_T = image_noise(torch.empty(SHAPE), [0, 1], 1000, seed=5)
    expected = theirs.ddim_sample_loop(network, SHAPE, noise=x_T, device="cpu")
    found = sample_ddim(network, NoiseSchedule.from_name(name), SHAPE, steps=25, spacing="ddim", seed=5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [25, 250])
@pytest.mark.parametrize("variance", ["small", "large", None])
def test_ancestral_sampling_is_guided_diffusions(monkeypatch, name, steps, variance):
    """With the same noise; of the variances, None stands for a learned one."""
    theirs = guided_diffusion(name, str(steps), learn_sigma=variance is None, sigma_small=variance == "small")
    x_T = image_noise(torch.empty(SHAPE), [0, 1], 1000, seed=5)
    left = list(theirs.timestep_map)
    monkeypatch.setattr(torch, "randn_like", lambda x: image_noise(x, [0, 1], left.pop(), seed=5))
    denoiser = learned if variance is None else network
    expected = theirs.p_sample_loop(denoiser, SHAPE, noise=x_T, device="cpu")
    found = sample_ddpm(
        denoiser, NoiseSchedule.from_name(name), SHAPE, steps=steps, spacing="adm", variance=variance, seed=5
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spacing", ["even", "log_snr"])
@pytest.mark.parametrize("steps", [3, 10, 20])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_solver_is_diffusers(name, steps, spacing):
    diffusers = pytest.importorskip("diffusers")
    schedule = NoiseSchedule.from_name(name)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=schedule.betas.numpy(), algorithm_type="dpmsolver++", solver_order=2, lower_order_final=False,
        final_sigmas_type="zero",
    )  # fmt: skip
    timesteps = spaced_timesteps(schedule, steps, spacing)
    scheduler.set_timesteps(timesteps=np.array(timesteps[::-1]).tolist())
    x = image_noise(torch.empty(SHAPE), [0, 1], 1000, seed=5)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(2)), t, x).prev_sample
    found = sample_dpm_solver(network, schedule, SHAPE, steps=steps, spacing=spacing, seed=5, clip=False)
    # Theirs has coefficients in float32.
    torch.testing.assert_close(found, x, rtol=1e-3, atol=5e-3)
