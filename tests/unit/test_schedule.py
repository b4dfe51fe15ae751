import pytest
import torch
from support import read_golden

from difformer import NoiseSchedule, q_sample

FAMILIES = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}


@pytest.mark.parametrize("name", FAMILIES)
def test_tables_match_the_golden_ones(name):
    schedule, (golden, _) = FAMILIES[name](1000), read_golden("schedules")
    ours = {
        "betas": schedule.betas,
        "alphas_cumprod": schedule.alpha_bar,
        "sqrt_alphas_cumprod": schedule.alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - schedule.alpha_bar).sqrt(),
        "posterior_variance": schedule.posterior_variance,
        "posterior_mean_coef1": schedule.posterior_mean_coefficients[0],
        "posterior_mean_coef2": schedule.posterior_mean_coefficients[1],
    }
    assert {f"{name}.{key}" for key in ours} == {key for key in golden if key.startswith(name)}
    for key, table in ours.items():
        assert table.dtype == torch.float64
        torch.testing.assert_close(table, golden[f"{name}.{key}"], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_signal_fades_and_variance_is_preserved(name, steps):
    schedule = FAMILIES[name](steps)
    assert schedule.num_timesteps == steps
    assert (schedule.alpha_bar.diff() < 0).all()
    a_t, s_t = schedule.coefficients(torch.arange(steps))
    torch.testing.assert_close(a_t**2 + s_t**2, torch.ones(steps))
    assert schedule.posterior_variance[0] == 0


def test_q_sample_is_its_equation():
    schedule = NoiseSchedule.linear()
    x_0, eps, t = torch.rand(3, 3, 4, 6) * 2 - 1, torch.randn(3, 3, 4, 6), torch.tensor([0, 500, 999])
    x_t = q_sample(x_0, t, eps, schedule)
    for i, step in enumerate(t.tolist()):
        alpha_bar = schedule.alpha_bar[step].item()
        torch.testing.assert_close(x_t[i], alpha_bar**0.5 * x_0[i] + (1 - alpha_bar) ** 0.5 * eps[i])
        torch.testing.assert_close(q_sample(x_0[i : i + 1], step, eps[i : i + 1], schedule), x_t[i : i + 1])
    assert q_sample(x_0.bfloat16(), 5, eps, schedule).dtype == torch.bfloat16


@pytest.mark.parametrize("t", [-1, 1000, torch.tensor([0, 1000]), torch.tensor([0.5, 1.0]), True])
def test_bad_timesteps_raise(t):
    with pytest.raises(ValueError, match="timesteps must"):
        q_sample(torch.zeros(2, 3, 4, 4), t, torch.zeros(2, 3, 4, 4), NoiseSchedule.linear())


def test_bad_shapes_raise():
    x_0 = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="eps must have"):
        q_sample(x_0, 1, torch.zeros(1, 3, 4, 4), NoiseSchedule.linear())
    with pytest.raises(ValueError, match="one timestep or 2"):
        q_sample(x_0, torch.tensor([1, 2, 3]), x_0, NoiseSchedule.linear())


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, 10])
def test_bad_lengths_raise(steps):
    with pytest.raises(ValueError, match="timesteps"):
        NoiseSchedule.linear(steps)


def test_bad_betas_raise():
    with pytest.raises(ValueError, match="float64"):
        NoiseSchedule("own", torch.tensor([0.1]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        NoiseSchedule("own", torch.tensor([0.1, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"'sigmoid'.*linear, cosine"):
        NoiseSchedule.from_name("sigmoid")


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.linear(1000),
        NoiseSchedule.cosine(250),
        NoiseSchedule("linear", torch.full((5,), 0.1, dtype=torch.float64)),
        NoiseSchedule("own", torch.rand(7, dtype=torch.float64) * 0.5 + 0.1),
    ],
    ids=["linear", "cosine", "misnamed", "own"],
)
def test_descriptions_round_trip(schedule):
    again = NoiseSchedule.from_dict(schedule.to_dict())
    assert again.name == schedule.name
    assert torch.equal(again.betas, schedule.betas)


@pytest.mark.parametrize("values", [{}, {"name": "linear"}, {"name": "own", "num_timesteps": 10}])
def test_bad_descriptions_raise(values):
    with pytest.raises(ValueError, match="schedule"):
        NoiseSchedule.from_dict(values)
