import numpy as np
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


@pytest.mark.parametrize(
    "t", [-1, 1000, torch.tensor([0, 1000]), torch.tensor([0.5, 1.0]), True, 1j, None, "a", [0, 1000]]
)
def test_bad_timesteps_raise(t):
    with pytest.raises(ValueError, match="timesteps must"):
        q_sample(torch.zeros(2, 3, 4, 4), t, torch.zeros(2, 3, 4, 4), NoiseSchedule.linear())


def test_bad_shapes_raise():
    x_0 = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="eps must have"):
        q_sample(x_0, 1, torch.zeros(1, 3, 4, 4), NoiseSchedule.linear())
    for t in (torch.tensor([1, 2, 3]), [1, 2, 3], np.array([1, 2, 3]), [[1, 2]]):
        with pytest.raises(ValueError, match="one timestep or 2"):
            q_sample(x_0, t, x_0, NoiseSchedule.linear())


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, 10, 2**16 + 1, 10**12])
def test_bad_lengths_raise(steps):
    with pytest.raises(ValueError, match="timesteps"):
        NoiseSchedule.linear(steps)


def test_bad_betas_raise():
    with pytest.raises(ValueError, match="float64"):
        NoiseSchedule("own", torch.tensor([0.1]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        NoiseSchedule("own", torch.tensor([0.1, 1.0], dtype=torch.float64))
    for betas in ([0.1], np.array([0.1]), None, torch.zeros(3, dtype=torch.float64, device="meta")):
        with pytest.raises(ValueError, match="betas must be a float64 tensor"):
            NoiseSchedule("own", betas)
    with pytest.raises(ValueError, match="at most 65536"):
        NoiseSchedule("own", torch.full((2**16 + 1,), 0.1, dtype=torch.float64))
    with pytest.raises(ValueError, match="name must be text"):
        NoiseSchedule(5, torch.full((3,), 0.1, dtype=torch.float64))
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


@pytest.mark.parametrize(
    "values", [{}, {"name": "linear"}, {"name": "own", "num_timesteps": 10}, {"name": "own", "betas": "x"}]
)
def test_bad_descriptions_raise(values):
    with pytest.raises(ValueError, match="schedule"):
        NoiseSchedule.from_dict(values)


def test_an_unknown_key_is_told_and_not_the_betas():
    with pytest.raises(ValueError, match=r"unknown key 'num_timestep' of a schedule; did you mean 'num_timesteps'\?$"):
        NoiseSchedule.from_dict({"name": "own", "betas": [0.1] * 4000, "num_timestep": 4000})
    with pytest.raises(ValueError, match=r"a schedule needs a name, and num_timesteps or betas; got betas$"):
        NoiseSchedule.from_dict({"betas": [0.1] * 4000})
    with pytest.raises(ValueError, match=r"with values, got list$"):
        NoiseSchedule("own", [0.1] * 4000)


def test_betas_and_their_number_must_agree():
    values = {"name": "linear", "betas": [0.1, 0.2]}
    with pytest.raises(ValueError, match="a schedule has 2 betas, but num_timesteps is 1000; leave one of them out"):
        NoiseSchedule.from_dict({**values, "num_timesteps": 1000})
    assert NoiseSchedule.from_dict({**values, "num_timesteps": 2}).betas.tolist() == [0.1, 0.2]


def test_timesteps_may_be_a_list_or_an_array():
    x_0, schedule = torch.rand(2, 3, 4, 4), NoiseSchedule.linear()
    expected = q_sample(x_0, torch.tensor([3, 7]), x_0, schedule)
    for t in ([3, 7], np.array([3, 7]), np.array([3, 7], dtype=np.uint8), torch.tensor([3, 7], dtype=torch.int16)):
        assert torch.equal(q_sample(x_0, t, x_0, schedule), expected)


def test_only_floating_point_images_are_noised():
    x_0 = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"x_0 must be a floating-point tensor, got torch\.uint8"):
        q_sample(x_0.byte(), 1, x_0, NoiseSchedule.linear())
    with pytest.raises(ValueError, match="eps must be a floating-point tensor"):
        q_sample(x_0, 1, x_0.int(), NoiseSchedule.linear())


def test_lengths_may_be_numpys():
    schedule = NoiseSchedule.linear(np.int64(50))
    assert schedule.num_timesteps == 50
    assert type(schedule.to_dict()["num_timesteps"]) is int


@pytest.mark.parametrize("name", FAMILIES)
def test_tables_are_on_the_cpu_whatever_the_default(name):
    with torch.device("meta"):
        schedule = FAMILIES[name](100)
        tables = (schedule.betas, schedule.alpha_bar, schedule.posterior_variance, *schedule.coefficients(5))
        again = NoiseSchedule.from_dict(NoiseSchedule("own", schedule.betas / 2).to_dict())
    assert {table.device.type for table in (*tables, again.betas)} == {"cpu"}


def test_networks_can_be_told_rescaled_timesteps():
    """OpenAI's `_WrappedModel`: new_ts.float() * (1000.0 / original_num_steps)."""
    schedule = NoiseSchedule.cosine(4000, rescale_timesteps=True)
    t = torch.tensor([0, 150, 3999])
    assert torch.equal(schedule.network_time(t), t.float() * (1000.0 / 4000))
    assert schedule.network_time(150).tolist() == 37.5
    again = NoiseSchedule.from_dict(schedule.to_dict())
    assert again.rescale_timesteps
    assert torch.equal(again.alpha_bar, NoiseSchedule.cosine(4000).alpha_bar)
    assert NoiseSchedule.from_name("linear", 500, rescale_timesteps=True).rescale_timesteps


def test_timesteps_are_told_as_they_are_elsewhere():
    for schedule in (NoiseSchedule.linear(4000), NoiseSchedule.linear(rescale_timesteps=True)):
        t = torch.tensor([5])
        assert schedule.network_time(t) is t
        assert schedule.network_time(7) == 7
        assert "rescale_timesteps" not in schedule.to_dict()
    with pytest.raises(ValueError, match="rescale_timesteps must be true or false"):
        NoiseSchedule.linear(4000, rescale_timesteps="yes")


@pytest.mark.parametrize(
    "values",
    [5, "name", None, [], {"name": "linear", "num_timesteps": 1000, "rescale": True}, {"name": [], "num_timesteps": 9},
     {"name": "own", "betas": [10**400]}, {"name": "own", "betas": [[0.1], 0.1]}, {"name": "own", "betas": []}],
)  # fmt: skip
def test_descriptions_of_other_kinds_raise(values):
    with pytest.raises(ValueError, match=r"schedule|betas"):
        NoiseSchedule.from_dict(values)
