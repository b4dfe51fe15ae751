"""Closed forms: for Gaussian data the optimal denoiser is known, so samplers must give back its moments."""

import numpy as np
import pytest
import torch

from difformer.diffusion import (
    NoiseSchedule,
    StridedSchedule,
    guided,
    image_noise,
    interpolate_ddim,
    invert_ddim,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    spaced_timesteps,
)

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


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.cosine(1000)], ids=["linear", "cosine"])
def test_the_large_variance_is_beta(schedule):
    """The deviation that ancestral sampling of Gaussian data ends with, step by step."""
    samples = sample_ddpm(
        optimal(schedule=schedule), schedule, SHAPE, clip=False, steps=20, spacing="adm", variance="large"
    )
    strided = StridedSchedule.of(schedule, 20, "adm").schedule
    of_x_0, of_x_t = strided.posterior_mean_coefficients
    variance = 1.0
    for i in reversed(range(20)):
        now = float(strided.alpha_bar[i])
        slope = now**0.5 * DEVIATION**2 / (now * DEVIATION**2 + 1 - now)
        added = float(strided.betas[i]) if i else 0.0
        variance = (float(of_x_0[i]) * slope + float(of_x_t[i])) ** 2 * variance + added
    assert samples.std() == pytest.approx(variance**0.5, abs=4 * variance**0.5 / samples.numel() ** 0.5)
    small = sample_ddpm(optimal(schedule=schedule), schedule, SHAPE, clip=False, steps=20, spacing="adm")
    assert samples.std() > 1.05 * small.std()


def test_a_variance_is_refused_where_the_network_learns_it():
    def learned(x_t, t):
        return torch.cat([x_t, x_t], dim=1)

    with pytest.raises(ValueError, match="the network learns its variance"):
        sample_ddpm(learned, SCHEDULE, (1, 1, 2, 2), steps=2, variance="small")
    with pytest.raises(ValueError, match="variance must be one of small, large, got 'medium'"):
        sample_ddpm(optimal(), SCHEDULE, (1, 1, 2, 2), steps=2, variance="medium")


def even_in_log_snr(num_timesteps):
    """A schedule whose log-SNR falls by the same amount from each timestep to the next."""
    alpha_bar = torch.sigmoid(2 * torch.linspace(4, -4, num_timesteps, dtype=torch.float64))
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return NoiseSchedule("even in log-SNR", 1 - alpha_bar / before)


def ode_solution(schedule, x_T):
    """Where DDIM's equation leads from x_T for Gaussian data: normals are scaled, and at last the optimal x_0."""
    (first, last), spread = schedule.alpha_bar[[0, -1]], DEVIATION**2
    x = (x_T.double() - last.sqrt() * MEAN) * ((first * spread + 1 - first) / (last * spread + 1 - last)).sqrt()
    return MEAN + first.sqrt() * spread / (first * spread + 1 - first) * x


def test_the_solver_is_of_second_order_and_ddim_of_first():
    schedule, x_T = even_in_log_snr(641), image_noise(torch.empty(64, 1, 2, 2), range(64), 0)
    expected, fine = (
        ode_solution(schedule, x_T),
        sample_ddim(optimal(schedule=schedule), schedule, x_T.shape, steps=None, start=x_T, clip=False),
    )
    assert (fine - expected).abs().max() < 2e-3
    for sampler, order in ((sample_ddim, 1), (sample_dpm_solver, 2)):
        errors = []
        for steps in (21, 41, 81, 161):
            found = sampler(
                optimal(schedule=schedule), schedule, x_T.shape, steps=steps, spacing="even", start=x_T, clip=False
            )
            errors.append(float((found - expected).square().mean().sqrt()))
        measured = np.log2(np.array(errors[:-1]) / errors[1:])
        assert measured == pytest.approx(order, abs=0.3), errors


def test_a_step_of_the_solver_written_out():
    """Algorithm 2 of Lu et al. 2022 on steps of different lengths: timesteps 999, 500 and 0."""
    denoise, x = optimal(), image_noise(torch.empty(5, 1, 2, 2), range(5), 1000, seed=2).double()
    alpha_bar = SCHEDULE.alpha_bar[[999, 500, 0]].numpy()
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    h = np.diff(np.log(alpha / sigma))

    def x_theta(x, i, t):
        return (x - sigma[i] * denoise(x.float(), torch.full((5,), t)).double()) / alpha[i]

    first = x_theta(x, 0, 999)
    x = sigma[1] / sigma[0] * x - alpha[1] * (np.exp(-h[0]) - 1) * first
    second, r = x_theta(x, 1, 500), h[0] / h[1]
    direction = (1 + 1 / (2 * r)) * second - 1 / (2 * r) * first
    x = sigma[2] / sigma[1] * x - alpha[2] * (np.exp(-h[1]) - 1) * direction
    expected = x_theta(x, 2, 0)
    found = sample_dpm_solver(denoise, SCHEDULE, x.shape, steps=3, spacing="even", seed=2, clip=False)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.cosine(1000)], ids=["linear", "cosine"])
def test_the_solver_is_near_fine_ddim_in_few_steps(schedule):
    x_T = image_noise(torch.empty(64, 1, 2, 2), range(64), 0)

    def error(sampler, steps, **options):
        found = sampler(optimal(schedule=schedule), schedule, x_T.shape, steps=steps, start=x_T, clip=False, **options)
        return float((found - ode_solution(schedule, x_T)).square().mean().sqrt())

    assert error(sample_dpm_solver, 20) < 0.25 * error(sample_ddim, 20)
    assert error(sample_dpm_solver, 20) < 0.01


def test_the_solver_clips_and_has_the_noise_of_its_ids():
    wide = optimal(0.9, 0.5)
    everyone = sample_dpm_solver(wide, SCHEDULE, (40, 1, 2, 2), seed=3)
    assert everyone.abs().max() <= 1
    assert sample_dpm_solver(wide, SCHEDULE, (40, 1, 2, 2), seed=3, clip=False).max() > 1
    assert sample_dpm_solver(wide, SCHEDULE, (1, 1, 2, 2), seed=3, ids=[7])[0].equal(everyone[7])
    one = sample_dpm_solver(wide, SCHEDULE, (4, 1, 2, 2), steps=1)
    assert one.equal(sample_ddim(wide, SCHEDULE, (4, 1, 2, 2), steps=1))


@pytest.mark.parametrize("spacing", ["even", "log_snr"])
def test_ddim_inverts_a_network(spacing):
    """A small network, which is not linear in x_t as Gaussian data's is."""
    weights = 0.3 * torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def network(x_t, t):
        hidden = torch.tanh(torch.nn.functional.conv2d(x_t, weights, padding=1) + t.view(-1, 1, 1, 1) / 1000)
        return optimal()(x_t, t) + 0.05 * torch.nn.functional.conv_transpose2d(hidden, weights, padding=1)

    x_0 = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    errors = []
    for steps in (50, 800):
        latent = invert_ddim(network, SCHEDULE, x_0, steps=steps, spacing=spacing)
        again = sample_ddim(network, SCHEDULE, x_0.shape, steps=steps, spacing=spacing, start=latent, clip=False)
        errors.append(float((again - x_0).abs().max()))
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.05


def test_interpolation_goes_from_one_image_to_the_other():
    first, second = (0.3 + 0.2 * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    shares = [0.0, 0.5, 1.0]
    found = interpolate_ddim(optimal(), SCHEDULE, first, second, shares, steps=500)
    assert found.shape == (3, 3, 1, 4, 4)
    torch.testing.assert_close(found[0], first, atol=0.02, rtol=0)
    torch.testing.assert_close(found[2], second, atol=0.02, rtol=0)
    # For Gaussian data the way is known: the noise is the normalised image, and its sphere is kept.
    ends = [((image - MEAN) / DEVIATION).flatten(1).double() for image in (first, second)]
    angle = torch.nn.functional.cosine_similarity(*ends).acos()[:, None]
    middle = MEAN + DEVIATION * (angle / 2).sin() / angle.sin() * (ends[0] + ends[1])
    torch.testing.assert_close(found[1].flatten(1).double(), middle, atol=0.02, rtol=0)
    same = interpolate_ddim(optimal(), SCHEDULE, first, first, [0.3], steps=500)
    torch.testing.assert_close(same[0], first, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("second", "shares", "message"),
    [((2, 1, 2, 2), [0.5], "one shape"), ((1, 1, 2, 2), [], "shares must be"), ((1, 1, 2, 2), [1.5], "shares must be")],
)
def test_what_cannot_be_interpolated_is_refused(second, shares, message):
    with pytest.raises(ValueError, match=message):
        interpolate_ddim(optimal(), SCHEDULE, torch.zeros(1, 1, 2, 2), torch.zeros(second), shares)


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


@pytest.mark.parametrize("num_timesteps", [2, 7, 100, 1000])
def test_spacings_of_guided_diffusion(num_timesteps):
    """The two rules written again: a running sum rounded half to even, and the first whole stride that fits."""
    schedule = NoiseSchedule.cosine(num_timesteps)
    by_stride = {}
    for stride in range(1, num_timesteps):
        by_stride.setdefault(-(-num_timesteps // stride), stride)
    for steps in range(1, num_timesteps + 1):
        strides = np.full(steps - 1, (num_timesteps - 1) / max(1, steps - 1))
        expected = np.rint(np.cumsum(np.concatenate([[0.0], strides]))).astype(int).tolist()
        assert spaced_timesteps(schedule, steps, "adm") == expected
        if steps in by_stride:
            assert spaced_timesteps(schedule, steps, "ddim") == [by_stride[steps] * i for i in range(steps)]
        else:
            with pytest.raises(ValueError, match=f"no whole stride visits {steps} of {num_timesteps}"):
                spaced_timesteps(schedule, steps, "ddim")


def test_some_timesteps_by_name():
    assert spaced_timesteps(SCHEDULE, 25, "ddim") == list(range(0, 1000, 40))
    assert spaced_timesteps(SCHEDULE, 3) == spaced_timesteps(SCHEDULE, 3, "adm") == [0, 500, 999]
    with pytest.raises(ValueError, match="of 1000 timesteps; with ddim spacing, give steps 56 or 59"):
        spaced_timesteps(SCHEDULE, 57, "ddim")
    with pytest.raises(ValueError, match="spacing must be one of even, adm, ddim, log_snr, got 'odd'"):
        spaced_timesteps(SCHEDULE, 5, "odd")


@pytest.mark.parametrize("steps", [2, 10, 20])
def test_log_snr_spacing_is_even_in_it(steps):
    timesteps = spaced_timesteps(even_in_log_snr(961), steps, "log_snr")
    assert timesteps == spaced_timesteps(even_in_log_snr(961), steps)
    found = spaced_timesteps(SCHEDULE, steps, "log_snr")
    ratios = torch.logit(SCHEDULE.alpha_bar) / 2
    wanted = torch.linspace(float(ratios[0]), float(ratios[-1]), steps, dtype=torch.float64)
    nearest = [int((ratios - one).abs().argmin()) for one in wanted]
    assert found == nearest


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.cosine(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 50, 300, 999, 1000])
def test_log_snr_spacing_has_different_timesteps_however_many(schedule, steps):
    timesteps = spaced_timesteps(schedule, steps, "log_snr")
    assert len(timesteps) == steps
    assert (np.diff(timesteps) > 0).all()
    assert timesteps[0] >= 0
    assert timesteps[-1] == 999


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
