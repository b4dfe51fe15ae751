"""Learning rates that step down after given epochs."""

import pytest
import torch

from difformer.config.reading import build, plain
from difformer.data import DataConfig
from difformer.engine.config.recipe import Recipe, ScheduleConfig, TrainingConfig
from difformer.engine.loop.optimisation import create_schedule


def rates(config, epochs, steps):
    """The rate of each step of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    set_rate = create_schedule(optimizer, config, epochs, steps)
    found = []
    for step in range(epochs * steps):
        set_rate(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_steps_lie_between_the_epochs(steps):
    found = rates(ScheduleConfig("step", gamma=0.1, milestones=(4, 5.0)), 6, steps)
    assert found == pytest.approx([1.0] * 4 * steps + [0.1] * steps + [0.01] * steps)


def test_equal_steps_are_as_before():
    given = rates(ScheduleConfig("step", gamma=0.5, milestones=(2, 4)), 6, 5)
    assert given == pytest.approx(rates(ScheduleConfig("step", gamma=0.5, step_epochs=2), 6, 5))


def test_the_warm_up_is_before_them():
    found = rates(ScheduleConfig("step", gamma=0.1, warmup_epochs=1, milestones=(3,)), 4, 4)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0] + [1.0] * 8 + [0.1] * 4)


def test_they_grow_with_the_epochs():
    recipe = Recipe(
        data=DataConfig(name="folder"),
        schedule=ScheduleConfig("step", milestones=(4, 5)),
        training=TrainingConfig(epochs=6, batch_size=10, least_steps=24),
    )
    assert recipe.lengthened(20).training.epochs == 12
    assert recipe.lengthened(20).schedule.milestones == (8, 10)
    assert build(Recipe, plain(recipe)).schedule.milestones == (4, 5)
    assert "milestones" not in plain(ScheduleConfig("step")), "recipes are written as before"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"milestones": 4}, "schedule.milestones must be a list, got 4"),
        ({"milestones": [4, "b"]}, "schedule.milestones must be a number above 0, got 'b'"),
        ({"milestones": [0]}, "schedule.milestones must be a number above 0, got 0"),
        ({"milestones": [5, 4]}, r"schedule.milestones must be in order, each later, got \[5, 4\]"),
        ({"milestones": [4, 4]}, r"schedule.milestones must be in order, each later, got \[4, 4\]"),
        ({"milestones": [4], "name": "cosine"}, "schedule.milestones are for the schedule step, not cosine"),
    ],
)
def test_wrong_ones(values, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**({"name": "step"} | values))
