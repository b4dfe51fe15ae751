import json

import numpy as np
import pytest
import torch
from processes import run_ranks
from safetensors.torch import load_file
from training import interrupt_after, merged, records_of, write_images

from difformer import create_backbone
from difformer.cli import main
from difformer.config.reading import build, dump, plain
from difformer.data import Batch
from difformer.diffusion import NoiseSchedule
from difformer.engine.loop.state import TrainingState
from difformer.engine.loop.trainer import Place, Trainer
from difformer.engine.runtime.processes import create_accelerator
from difformer.verbs.pretrain.denoising import Denoising, ObjectiveConfig
from difformer.verbs.pretrain.pretrain import PretrainRun, pretrain
from difformer.verbs.pretrain.recipe import PretrainRecipe

pytestmark = pytest.mark.usefixtures("drawn_once")
MODEL = {
    "image_size": 16, "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1,
    "attention_resolutions": [8], "num_head_channels": 16, "num_classes": 4, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("work") / "images", {"train": 7}, size=16)
    return {
        "data": {"name": "folder", "root": str(root), "size": 16},
        "model": MODEL,
        # Few timesteps, so that the sampler of timesteps learns within the run.
        "noise": "cosine",
        "num_timesteps": 4,
        "objective": {"timesteps": "loss_aware", "label_dropout": 0.3},
        "optimizer": {"lr": 1e-3, "clip_norm": 1.0},
        "training": {"epochs": 4, "batch_size": 8, "workers": 0, "ema": 0.8},
        "samples": {"count": 2, "steps": 2},
        "trackers": [],
    }


def make_recipe(values, **changes):
    return build(PretrainRecipe, plain(merged(values, changes)))


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pretrain(make_recipe(values, output=str(folder)))
    return folder


def assert_same_run(one, other):
    assert records_of(one) == records_of(other)
    state, state2 = (TrainingState.load(folder / "state.pt") for folder in (one, other))
    backbone, backbone2 = (load_file(folder / "backbone.safetensors") for folder in (one, other))
    pairs = [(backbone, backbone2), (state.weights, state2.weights), (state.task, state2.task)]
    for tensors, tensors2 in [*pairs, (state.averaged, state2.averaged)]:
        assert tensors.keys() == tensors2.keys()
        assert all(tensors[name].equal(tensors2[name]) for name in tensors)


def test_pretraining_learns_and_leaves_a_backbone(finished):
    names = {path.name for path in finished.iterdir() if path.name != ".lock"}
    assert names == {
        "backbone.safetensors", "curves.png", "environment.json", "metrics.jsonl", "recipe.yaml", "results.json",
        "samples.png", "splits.json", "state.pt", "state.previous.pt",
    }  # fmt: skip
    records = records_of(finished)
    assert records[-1]["images"] == 4 * 21
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert json.loads((finished / "results.json").read_text())["last"]["epoch"] == 4
    state = TrainingState.load(finished / "state.pt")
    # It has begun to choose timesteps.
    assert (state.task["counts"] >= 10).all()


def test_the_backbone_is_the_frozen_average(finished):
    backbone = create_backbone(finished / "backbone.safetensors")
    assert backbone.schedule.num_timesteps == 4
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    state = TrainingState.load(finished / "state.pt")
    own = backbone.unet.state_dict()
    assert state.averaged is not None
    assert own.keys() == state.averaged.keys()
    assert all(own[name].equal(state.averaged[name]) for name in own)
    assert not all(own[name].equal(state.weights[name]) for name in own)


def test_the_average_forgets_fresh_weights_soon_and_then_keeps_its_pace(values, tmp_path, monkeypatch):
    recipe = make_recipe(values, output=str(tmp_path / "run"), training={"ema": 0.15, "epochs": 1})
    kept = []
    original = Trainer._average

    def noting(self, step):
        kept.append({name: tensor.clone() for name, tensor in self.averaged.items()})
        original(self, step)
        kept.append({name: tensor.clone() for name, tensor in self.objective.parts.state_dict().items()})

    monkeypatch.setattr(Trainer, "_average", noting)
    pretrain(recipe)
    average = dict(kept[0])
    for weights, decay in zip(kept[1::2], (1 / 10, 0.15, 0.15), strict=True):
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    found = load_file(tmp_path / "run" / "backbone.safetensors")
    for name, tensor in average.items():
        torch.testing.assert_close(found[name], tensor)


def test_without_a_compiler_it_says_so_and_runs_as_it_is(values, finished, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("difformer.models.compiling.shutil.which", lambda name: None)
    pretrain(make_recipe(values, output=str(tmp_path / "run"), compile=True))
    assert "torch needs a C++ compiler" in caplog.text
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_and_goes_on_to_the_bit(values, finished, tmp_path):
    whole, stopped = (make_recipe(values, output=str(tmp_path / name), compile=True) for name in ("whole", "stopped"))
    pretrain(whole)
    weights, plain_weights = (load_file(folder / "backbone.safetensors") for folder in (tmp_path / "whole", finished))
    assert weights.keys() == plain_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, plain_weights[name], rtol=1e-3, atol=1e-4)
    interrupt_after(lambda: pretrain(stopped), 4)
    pretrain(stopped)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("steps", [1, 3, 11])
def test_pretraining_goes_on_to_the_bit(values, finished, tmp_path, steps):
    recipe = make_recipe(values, output=str(tmp_path / "run"))
    interrupt_after(lambda: pretrain(recipe), steps)
    torch.manual_seed(3)
    pretrain(recipe)
    assert_same_run(tmp_path / "run", finished)


def test_a_picture_on_the_way_changes_nothing(values, finished, tmp_path):
    pretrain(make_recipe(values, output=str(tmp_path / "run"), samples={"every": 2}))
    assert (tmp_path / "run" / "samples-00002.png").exists()
    assert_same_run(tmp_path / "run", finished)


def test_a_run_killed_before_its_last_backbone_writes_it(values, finished, tmp_path, monkeypatch):
    recipe = make_recipe(values, output=str(tmp_path / "run"), samples={"every": 3})
    with monkeypatch.context() as patch:
        patch.setattr(PretrainRun, "finish", lambda self, last: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            pretrain(recipe)
    assert (tmp_path / "run" / "backbone.safetensors").exists()
    pretrain(recipe)
    assert_same_run(tmp_path / "run", finished)


def test_two_processes_learn_what_one_does(values, finished, tmp_path):
    # The last step of an epoch has one image for two processes.
    changes = {"training": {"batch_size": 4, "accumulation": 2, "epochs": 2}}
    one, two = (make_recipe(values, output=str(tmp_path / name), **changes) for name in ("one", "two"))
    pretrain(one)
    (tmp_path / "recipe.yaml").write_text(dump(two))
    out = run_ranks(2, "pretrain", tmp_path / "recipe.yaml").stdout
    assert out.count("results in") == 1
    state, state2 = (TrainingState.load(tmp_path / name / "state.pt") for name in ("one", "two"))
    for name, tensor in state.weights.items():
        torch.testing.assert_close(state2.weights[name], tensor, rtol=1e-3, atol=1e-5)
    assert state.task["counts"].equal(state2.task["counts"])
    assert int(state.task["counts"].sum()) == 42
    torch.testing.assert_close(state2.task["losses"], state.task["losses"], rtol=1e-4, atol=1e-6)


def test_the_simple_objective_has_no_variance(values, tmp_path):
    changes = {"model": {"out_channels": 3}, "objective": {"name": "simple"}, "training": {"epochs": 1, "ema": None}}
    pretrain(make_recipe(values, output=str(tmp_path / "run"), **changes))
    assert create_backbone(tmp_path / "run" / "backbone.safetensors").config.out_channels == 3
    with pytest.raises(ValueError, match=r"model\.out_channels must be 6 for objective\.name hybrid"):
        make_recipe(values, model={"out_channels": 3})


class _Recorder(torch.nn.Module):
    """A network that predicts no noise, and notes what it is given."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.seen = []

    def forward(self, x_t, t, y):
        self.seen.append(y)
        return torch.zeros(len(x_t), 2 * x_t.shape[1], *x_t.shape[2:])


def test_labels_are_dropped_at_random_and_become_the_null_label(values):
    recipe = make_recipe(values)
    network = _Recorder(recipe.model)
    config = ObjectiveConfig(label_dropout=0.25)
    accelerator = create_accelerator(recipe.training.precision)
    task = Denoising(network, NoiseSchedule.cosine(4), config, seed=0, processes=accelerator)
    batch = Batch(torch.zeros(400, 3, 2, 2), torch.arange(400) % 3, torch.arange(400))
    for epoch in (0, 0, 1):
        task.begin_epoch(epoch)
        task.losses(network, batch, torch.device("cpu"), Place(0, 0, 0))
    first, again, other = network.seen
    assert first.equal(again)
    assert not first.equal(other)
    dropped = first == 3
    assert first[~dropped].equal(batch.labels[~dropped])
    # Three standard deviations of a binomial.
    assert int(dropped.sum()) == pytest.approx(100, abs=3 * np.sqrt(400 * 0.25 * 0.75))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"bound_weight": float("nan")}}, r"objective\.bound_weight must be a number at least 0"),
        ({"samples": {"steps": 5}}, r"samples\.steps must be at most num_timesteps, 4"),
        ({"noise": "quadratic"}, "noise must be linear or cosine"),
        ({"data": {"size": 32}}, r"data\.size, 32, must be model\.image_size, 16"),
    ],
)
def test_a_wrong_value_says_what_was_expected(values, changes, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(values, **changes)


def test_classes_that_do_not_fit_the_network_are_refused_at_the_beginning(values, tmp_path, capsys):
    recipe = make_recipe(values, output=str(tmp_path / "run"), model={"num_classes": 3})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert main(["pretrain", str(tmp_path / "recipe.yaml")]) == 1
    assert "at least 4, for the 3 classes, and one for the null label" in capsys.readouterr().err
