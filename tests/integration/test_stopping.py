"""Runs that are stopped, killed or fail: they resume to the result of one that was not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import joined, run_command, start, wait_for
from support import tiny_unet
from torch.utils.data import get_worker_info
from training import assert_same_run, interrupt_after, make_recipe, run_result, write_images, write_workplace

from difformer import CheckpointError, UNet, create_backbone
from difformer.cli import main
from difformer.config.reading import dump
from difformer.data.samples import SampleReader
from difformer.engine.config.build import build_classifier
from difformer.engine.loop.state import TrainingState
from difformer.engine.loop.trainer import TrainingError
from difformer.engine.runtime.stopping import Stopped
from difformer.verbs.train.learning import HeadLearning
from difformer.verbs.train.train import train

pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    return folder, write_workplace(folder)


@pytest.fixture(scope="module")
def finished(workplace):
    folder, values = workplace
    train(make_recipe(values, output=str(folder / "finished")))
    return folder / "finished"


@pytest.mark.parametrize("trials", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_a_random_moment_goes_on_to_the_same_result(workplace, tmp_path, trials):
    _, values = workplace
    recipe = make_recipe(values, training={"save_minutes": 0.0})

    def begun(name):
        """A run that has begun."""
        child = start(train, replace(recipe, output=str(tmp_path / name)))
        wait_for((tmp_path / name).exists, child)
        return child

    child, begin = begun("whole"), time.monotonic()
    assert joined(child) == 0
    duration = time.monotonic() - begin
    rng, killed = random.Random(0), 0
    for trial in map(str, range(3 * trials)):
        child = begun(trial)
        time.sleep(rng.uniform(0, duration))
        child.kill()
        # Some are done before the signal comes.
        if joined(child) == -signal.SIGKILL:
            killed += 1
            assert joined(begun(trial)) == 0
            assert_same_run(tmp_path / trial, tmp_path / "whole")
        if killed == trials:
            break
    assert killed == trials


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_a_signal_finishes_the_step_saves_and_exits(workplace, finished, tmp_path, number, workers):
    _, values = workplace
    training = {"workers": workers, "save_minutes": 1000}
    recipe = make_recipe(values, output=str(tmp_path / "run"), training=training)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    script = ["train", str(tmp_path / "recipe.yaml")]
    child, errors = start(run_command, *script, output=tmp_path), tmp_path / "stderr"
    wait_for(lambda: errors.exists() and "epoch 1/3" in errors.read_text(), child)
    # As a terminal does it: the whole group, data workers included.
    os.killpg(child.pid, number)
    assert joined(child) == 128 + number
    assert "the same command resumes from there" in errors.read_text()
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert 0 < state["progress"]["images"] < 72
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert_same_run(tmp_path / "run", finished)


def test_another_recipe_does_not_go_on_with_the_run(finished, workplace, tmp_path):
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.05 and is now 0\.1.*--overwrite"):
        train(make_recipe(workplace[1], output=str(finished), optimizer={"lr": 0.1}))


def test_other_images_do_not_go_on_with_the_run(workplace, tmp_path):
    _, values = workplace
    recipe = make_recipe(values, output=str(tmp_path / "run"))
    interrupt_after(lambda: train(recipe), 1)
    write_images(tmp_path / "others", {"train": 8, "test": 5})
    with pytest.raises(ValueError, match="the training images are not those"):
        train(make_recipe(values, output=str(tmp_path / "run"), data={"root": str(tmp_path / "others")}))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_going_on_in_the_middle_of_an_epoch_changes_nothing(workplace, finished, tmp_path, steps):
    _, values = workplace
    recipe = make_recipe(values, output=str(tmp_path / "run"))
    interrupt_after(lambda: train(recipe), steps)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["progress"]["images"] == 8 * steps
    train(recipe)
    assert_same_run(tmp_path / "run", finished)


def test_randomness_of_every_kind_goes_on_where_it_was(workplace, tmp_path):
    _, values = workplace
    changes = {
        "head": {"arguments": {"dropout": 0.2, "drop_path": 0.2}},
        "training": {"mixup": 0.5, "cutmix": 0.5, "ema": 0.9, "label_smoothing": 0.1, "accumulation": 2},
        "data": {"augmentation": "rand-m9-mstd0.5-inc1", "random_erasing": 0.2},
        "optimizer": {"name": "adamw", "lr": 1e-3, "momentum": 0.0, "clip_norm": 1.0},
        "schedule": {"name": "cosine", "warmup_epochs": 1},
    }
    whole = make_recipe(values, output=str(tmp_path / "whole"), **changes)
    train(whole)
    recipe = make_recipe(values, output=str(tmp_path / "run"), **changes)
    interrupt_after(lambda: train(recipe), 5)
    torch.manual_seed(5)
    train(recipe)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_feedback_is_trained_and_goes_on(workplace, tmp_path):
    _, values = workplace
    changes = {
        "extractor": {"feedback_taps": ["out03"], "taps": ["out02"], "timesteps": [90]},
        "training": {"epochs": 2},
        "evaluation": {"select": "last"},
    }
    train(make_recipe(values, output=str(tmp_path / "whole"), **changes))
    recipe = make_recipe(values, output=str(tmp_path / "run"), **changes)
    interrupt_after(lambda: train(recipe), 4)
    train(recipe)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    weights, _, _ = run_result(tmp_path / "run")
    assert {name.partition(".")[0] for name in weights} == {"head", "feedback"}
    initial = build_classifier(recipe, create_backbone(values["backbone"]["name"]), ("a", "b", "c")).trained_state()
    assert not weights["feedback.0.0.weight"].equal(initial["feedback.0.0.weight"])
    # Batch statistics moved: the layers were in training mode in every epoch.
    assert weights["feedback.0.1.num_batches_tracked"] == 6


def test_a_loss_that_is_not_finite_stops_the_run_with_the_images(workplace, tmp_path):
    _, values = workplace
    recipe = make_recipe(values, output=str(tmp_path / "run"), optimizer={"lr": 1e30})
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch 1, step \d, with the images of ids \[\d+"):
        train(recipe)


def test_a_full_disk_leaves_the_last_state(workplace, finished, tmp_path, monkeypatch):
    _, values = workplace
    recipe = make_recipe(values, output=str(tmp_path / "run"))
    interrupt_after(lambda: train(recipe), 2)
    before = (tmp_path / "run" / "state.pt").read_bytes()

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="could not be written"):
            train(recipe)
    assert (tmp_path / "run" / "state.pt").read_bytes() == before
    train(recipe)
    assert_same_run(tmp_path / "run", finished)


def test_a_data_folder_that_vanishes_stops_the_run_with_the_name(workplace, finished, tmp_path):
    folder, values = workplace
    shutil.copytree(folder / "images", tmp_path / "images")
    recipe = make_recipe(values, output=str(tmp_path / "run"), data={"root": str(tmp_path / "images")})
    interrupt_after(lambda: train(recipe), 2)
    (tmp_path / "images").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "images")):
        train(recipe)
    (tmp_path / "gone").rename(tmp_path / "images")
    train(recipe)
    assert_same_run(tmp_path / "run", finished)


def test_a_damaged_state_says_so(workplace, tmp_path):
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))
    interrupt_after(lambda: train(recipe), 1)
    (tmp_path / "run" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read as a training state"):
        train(recipe)


def test_overwriting_leaves_nothing_of_the_run_before(workplace, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "difformer" / "1").mkdir(parents=True)
    (tmp_path / "run" / "difformer" / "1" / "events.out.tfevents.1").write_text("of the run before")
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))

    def killed(self, path, previous):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", killed)
        with pytest.raises(OSError, match="killed"):
            train(recipe, overwrite=True)
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {".lock", "notes.txt", "environment.json", "metrics.jsonl", "recipe.yaml", "splits.json"}
    # Had the old state stayed, this would be a finished run.
    assert train(recipe)["last"]["epoch"] == 3
    assert_same_run(tmp_path / "run", finished)


def test_two_runs_do_not_share_a_folder(workplace, tmp_path):
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run" / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FileExistsError, match="another run is using"):
            train(recipe)
        other.kill()
    interrupt_after(lambda: train(recipe), 1)


def test_what_a_killed_run_left_half_written_is_no_obstacle(workplace, tmp_path):
    (tmp_path / "run").mkdir()
    leftover = tmp_path / "run" / ".recipe.yaml.0123456789abcdef.tmp"
    leftover.write_text("half")
    interrupt_after(lambda: train(make_recipe(workplace[1], output=str(tmp_path / "run"))), 1)
    assert not leftover.exists()


def test_a_signal_during_an_evaluation_stops_at_once(workplace, finished, tmp_path, monkeypatch):
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    with monkeypatch.context() as patch:
        patch.setattr("difformer.verbs.train.run.evaluate", interrupted)
        with pytest.raises(Stopped, match="epoch 1 after step 3 of 3") as caught:
            train(recipe)
    assert caught.value.status == 128 + signal.SIGTERM
    train(recipe)
    assert_same_run(tmp_path / "run", finished)


def test_weights_that_are_not_finite_do_not_replace_the_state(workplace, finished, tmp_path, monkeypatch):
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))
    interrupt_after(lambda: train(recipe), 2)
    before = (tmp_path / "run" / "state.pt").read_bytes()

    def spoil(self):
        next(self.parts.parameters()).data.fill_(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(HeadLearning, "end_step", spoil)
        with pytest.raises(TrainingError, match="is not finite after epoch 1, step 3"):
            train(recipe)
    assert (tmp_path / "run" / "state.pt").read_bytes() == before
    train(recipe)
    assert_same_run(tmp_path / "run", finished)


def test_another_backbone_under_the_same_name_does_not_go_on(workplace, tmp_path):
    folder, values = workplace
    shutil.copy(folder / "backbone.safetensors", tmp_path / "own.safetensors")
    recipe = make_recipe(values, output=str(tmp_path / "run"), backbone={"name": str(tmp_path / "own.safetensors")})
    interrupt_after(lambda: train(recipe), 1)
    torch.manual_seed(1)
    other = UNet(tiny_unet().config)
    create_backbone(other, schedule="linear").save(tmp_path / "own.safetensors", overwrite=True)
    with pytest.raises(ValueError, match="the backbone's weights are not those"):
        train(recipe)


def test_a_data_worker_that_dies_stops_the_run_and_says_how_to_go_on(workplace, finished, tmp_path):
    _, values = workplace
    recipe = make_recipe(values, output=str(tmp_path / "run"), training={"workers": 1})
    original = SampleReader.read

    def killed(self, *arguments):
        if get_worker_info() is not None and self.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleReader, "read", killed)
        with pytest.raises(TrainingError, match=r"a data worker died in epoch 2, step 1.*the same command resumes"):
            train(recipe)
    train(recipe)
    assert_same_run(tmp_path / "run", finished)
