"""Closed forms: for Gaussian data the optimal denoiser is known, so samplers must give back its moments."""

import pytest
import torch

from difformer.diffusion import NoiseSchedule, guided, image_noise, invert_ddim, sample_ddim, sample_ddpm
from difformer.diffusion.samplers import StridedSchedule

MEAN, DEVIATION = 0.3, 0.2
SHAPE = (4000, 1, 2, 2)
SCHEDULE = NoiseSchedule.linear(1000)


def optimal(mean=MEAN, deviation=DEVIATION, schedule=SCHEDULE):
    """E[eps | x_t] when x_0 is normal."""

    def denoise(x_t, t):
        a, s = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(t))
        return s * (x_t - a * mean) / (a**2 * deviation**2 + s**2)

    return denoise


def expected_deviation(schedule, steps, eta):
    """The deviation that a linear sampler ends with, step by step; eta None stands for ancestral sampling."""
    strided = StridedSchedule.of(schedule, steps).schedule
    of_x_0, of_x_t = strided.posterior_mean_coefficients
    variance = 1.0
    for i in reversed(range(strided.num_timesteps)):
        now, before = float(strided.alpha_bar[i]), float(strided.alpha_bar[i - 1]) if i else 1.0
        # E[x_0 | x_t] moves by this much with x_t.
        slope = now**0.5 * DEVIATION**2 / (now * DEVIATION**2 + 1 - now)
        if eta is None:
            gain, added = float(of_x_0[i]) * slope + float(of_x_t[i]), float(strided.posterior_variance[i])
        else:
            added = eta**2 * (1 - before) / (1 - now) * (1 - now / before)
            direction = (1 - now**0.5 * slope) / (1 - now) ** 0.5
            gain = before**0.5 * slope + (1 - before - added) ** 0.5 * direction
        variance = gain**2 * variance + added
    return variance**0.5


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (sample_ddpm, {"steps": 1000}),
        (sample_ddpm, {"steps": 50}),
        (sample_ddim, {"steps": 1000}),
        (sample_ddim, {"steps": 50}),
        (sample_ddim, {"steps": 50, "eta": 0.5}),
        (sample_ddim, {"steps": 1000, "eta": 1.0}),
    ],
)
@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.cosine(1000)], ids=["linear", "cosine"])
def test_samplers_reproduce_the_moments_of_gaussian_data(sampler, options, schedule):
    samples = sampler(optimal(schedule=schedule), schedule, SHAPE, clip=False, **options).double()
    expected = expected_deviation(schedule, options["steps"], None if sampler is sample_ddpm else options.get("eta", 0))
    error = expected / samples.numel() ** 0.5
    assert samples.mean() == pytest.approx(MEAN, abs=4 * error)
    assert samples.std() == pytest.approx(expected, abs=4 * error)
    if options["steps"] == 1000:
        assert expected == pytest.approx(DEVIATION, rel=0.02)
    # Neighbouring pixels are independent in the data.
    assert torch.corrcoef(samples.flatten(1).T)[0, 1].abs() < 5 / len(samples) ** 0.5


def test_a_learned_variance_is_used():
    def with_variance(fraction):
        denoise = optimal()
        return lambda x, t: torch.cat([denoise(x, t), torch.full_like(x, fraction)], dim=1)

    low, high = (sample_ddpm(with_variance(f), SCHEDULE, (500, 1, 2, 2), steps=10, clip=False) for f in (-1.0, 1.0))
    plain = sample_ddpm(optimal(), SCHEDULE, (500, 1, 2, 2), steps=10, clip=False)
    torch.testing.assert_close(low, plain)
    assert high.std() > 1.2 * low.std()


def test_ddim_inverts():
    x_0 = 0.3 + 0.2 * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    latent = invert_ddim(optimal(), SCHEDULE, x_0, steps=1000)
    again = sample_ddim(optimal(), SCHEDULE, x_0.shape, steps=1000, start=latent, clip=False)
    assert (again - x_0).abs().max() < 0.01
    # The latents of Gaussian data are standard normal.
    assert latent.mean().abs() < 0.1
    assert latent.std() == pytest.approx(1, abs=0.05)


def test_inversion_gets_better_with_more_steps():
    x_0 = 0.3 + 0.2 * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (10, 50, 250):
        latent = invert_ddim(optimal(), SCHEDULE, x_0, steps=steps)
        errors.append(
            (sample_ddim(optimal(), SCHEDULE, x_0.shape, steps=steps, start=latent, clip=False) - x_0).abs().max()
        )
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_samples_belong_to_their_ids_and_seed():
    everyone = sample_ddim(optimal(), SCHEDULE, (4, 1, 2, 2), steps=5, eta=1.0, seed=3)
    two = sample_ddim(optimal(), SCHEDULE, (2, 1, 2, 2), steps=5, eta=1.0, seed=3, ids=[3, 1])
    assert two[0].equal(everyone[3])
    assert two[1].equal(everyone[1])
    assert not sample_ddim(optimal(), SCHEDULE, (4, 1, 2, 2), steps=5, eta=1.0, seed=4).equal(everyone)


def test_clipping_keeps_samples_in_range():
    wide = sample_ddpm(optimal(0.9, 0.5), SCHEDULE, (200, 1, 2, 2), steps=50)
    assert wide.abs().max() <= 1
    assert sample_ddpm(optimal(0.9, 0.5), SCHEDULE, (200, 1, 2, 2), steps=50, clip=False).max() > 1


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_strided_schedules_have_the_same_noise_levels(steps):
    strided = StridedSchedule.of(SCHEDULE, steps)
    assert len(set(strided.timesteps.tolist())) == steps
    assert strided.timesteps[-1] == 999
    torch.testing.assert_close(strided.schedule.alpha_bar, SCHEDULE.alpha_bar[strided.timesteps])


@pytest.mark.parametrize("steps", [1, 7])
def test_strided_schedules_are_on_the_cpu_whatever_the_default(steps):
    with torch.device("meta"):
        strided = StridedSchedule.of(SCHEDULE, steps)
    assert {strided.timesteps.device.type, strided.schedule.betas.device.type} == {"cpu"}


@pytest.mark.parametrize("steps", [0, 1001, 2.5])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps must be"):
        StridedSchedule.of(SCHEDULE, steps)


def test_guidance_moves_away_from_the_unconditional_mean():
    pushed = guided(optimal(0.3), optimal(0.0), 2.0, channels=1)
    assert sample_ddim(pushed, SCHEDULE, (500, 1, 2, 2), steps=50, clip=False).mean() > 0.6
    same = guided(optimal(0.3), optimal(0.0), 0.0, channels=1)
    x, t = image_noise(torch.empty(3, 1, 2, 2), [0, 1, 2], 5), torch.tensor([5, 5, 5])
    torch.testing.assert_close(same(x, t), optimal(0.3)(x, t))


def test_eta_must_be_a_share():
    with pytest.raises(ValueError, match="eta"):
        sample_ddim(optimal(), SCHEDULE, (1, 1, 2, 2), eta=2)
