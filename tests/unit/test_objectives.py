import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from difformer.diffusion import LossAwareTimesteps, NoiseSchedule, UniformTimesteps, denoising_losses, q_sample
from difformer.diffusion.objectives import bound_term, learned_log_variance

SCHEDULE = NoiseSchedule.linear(1000)


def example(t, batch=2):
    rng = torch.Generator().manual_seed(1)
    x_0 = (torch.randint(0, 256, (batch, 3, 4, 4), generator=rng).float() / 127.5) - 1
    eps = torch.randn(x_0.shape, generator=rng)
    t = torch.full((batch,), t)
    return x_0, eps, q_sample(x_0, t, eps, SCHEDULE), t


def test_the_simple_loss_is_the_mean_squared_error():
    x_0, eps, x_t, t = example(100)
    losses = denoising_losses(eps + 0.5, x_0, x_t, t, eps, SCHEDULE)
    torch.testing.assert_close(losses.simple, torch.full((2,), 0.25))
    assert losses.bound is None
    assert losses.hybrid(1e-3, 1000).equal(losses.simple)


@pytest.mark.parametrize("t", [1, 50, 999])
def test_the_bound_is_the_divergence_of_the_two_gaussians(t):
    x_0, eps, x_t, steps = example(t)
    predicted, fraction = eps + 0.1 * torch.randn_like(eps), torch.rand_like(eps) * 2 - 1
    alpha, before = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[t - 1]
    beta = SCHEDULE.betas[t]
    variance = beta * (1 - before) / (1 - alpha)

    def mean(clean):
        return (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - alpha)

    guess = (x_t - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
    share = (fraction.double() + 1) / 2
    own_variance = (share * beta.log() + (1 - share) * variance.log()).exp()
    expected = kl_divergence(
        Normal(mean(x_0.double()), variance.sqrt()), Normal(mean(guess.double()), own_variance.sqrt())
    )
    found = bound_term(predicted, fraction, x_0, x_t, steps, SCHEDULE)
    torch.testing.assert_close(found.double(), expected.flatten(1).mean(1) / math.log(2), rtol=1e-3, atol=1e-5)


def test_a_perfect_prediction_has_no_divergence():
    x_0, eps, x_t, t = example(300)
    assert bound_term(eps, torch.full_like(eps, -1.0), x_0, x_t, t, SCHEDULE).abs().max() < 1e-4


def test_the_last_term_is_the_likelihood_of_pixels():
    x_0, eps, x_t, t = example(0)
    # With a variance this small and the mean right, each pixel is almost certain.
    assert bound_term(eps, torch.full_like(eps, -1.0), x_0, x_t, t, SCHEDULE).max() < 5
    sizes = []
    for shift in (0.0, 5.0):
        sizes.append(bound_term(eps + shift, torch.full_like(eps, -1.0), x_0, x_t, t, SCHEDULE).mean())
    assert sizes[1] > sizes[0]


def test_the_probabilities_of_a_pixels_values_sum_to_one():
    values = torch.arange(256).float() / 127.5 - 1
    x_0 = values.view(-1, 1, 1, 1)
    x_t = torch.full_like(x_0, 0.2)
    bits = bound_term(torch.zeros_like(x_0), torch.ones_like(x_0), x_0, x_t, torch.zeros(256).long(), SCHEDULE)
    assert (2 ** -bits.double()).sum() == pytest.approx(1, abs=1e-5)


def test_the_bound_trains_the_variance_alone():
    x_0, eps, x_t, t = example(100)
    output = torch.cat([eps + 0.3, torch.zeros_like(eps)], dim=1).requires_grad_()
    losses = denoising_losses(output, x_0, x_t, t, eps, SCHEDULE)
    assert losses.bound is not None
    (gradient,) = torch.autograd.grad(losses.bound.sum(), output)
    assert gradient[:, :3].abs().max() == 0
    assert gradient[:, 3:].abs().min() > 0


def test_the_hybrid_loss_sums_the_bound_over_all_timesteps():
    x_0, eps, x_t, t = example(100)
    losses = denoising_losses(torch.cat([eps + 0.5, eps], dim=1), x_0, x_t, t, eps, SCHEDULE)
    assert losses.bound is not None
    torch.testing.assert_close(losses.hybrid(1e-3, 1000), losses.simple + losses.bound)


def test_variances_lie_between_the_two_bounds():
    t = torch.tensor([0, 1, 500, 999])
    low, high = (learned_log_variance(torch.full((4, 1, 1, 1), f), t, SCHEDULE).flatten() for f in (-1.0, 1.0))
    torch.testing.assert_close(high, SCHEDULE.betas[t].log().float())
    torch.testing.assert_close(low[1:], SCHEDULE.posterior_variance[t[1:]].log().float())
    assert low.isfinite().all()


def test_other_outputs_are_refused():
    x_0, eps, x_t, t = example(100)
    with pytest.raises(ValueError, match="must give 3 or 6 channels, got 4"):
        denoising_losses(torch.zeros(2, 4, 4, 4), x_0, x_t, t, eps, SCHEDULE)


def test_uniform_timesteps_are_uniform():
    t, weights = UniformTimesteps(10).choose(np.random.default_rng(0).random(20_000))
    assert np.abs(np.bincount(t, minlength=10) / 20_000 - 0.1).max() < 0.01
    assert (weights == 1).all()


def test_loss_aware_timesteps_follow_the_loss_and_keep_the_expectation():
    sampler, rng = LossAwareTimesteps(5, history=4), np.random.default_rng(0)
    losses = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    for _ in range(3):
        sampler.update(np.arange(5), losses)
    assert np.allclose(sampler.probabilities, 0.2)
    sampler.update(np.arange(5), losses)
    assert np.allclose(sampler.probabilities, 0.999 * losses / losses.sum() + 0.001 / 5)
    t, weights = sampler.choose(rng.random(200_000))
    assert (losses[t] * weights).mean() == pytest.approx(losses.mean(), rel=0.01)


def test_loss_aware_timesteps_forget_the_oldest_and_come_back():
    sampler = LossAwareTimesteps(2, history=2)
    for loss in (100.0, 1.0, 1.0):
        sampler.update(np.arange(2), np.array([loss, 1.0]))
    assert np.allclose(sampler.probabilities, 0.5)
    sampler.update(np.array([0]), np.array([9.0]))
    again = LossAwareTimesteps(2, history=2)
    again.load_state_dict(sampler.state_dict())
    assert np.array_equal(again.probabilities, sampler.probabilities)
    assert again.probabilities[0] > 0.8
