"""Runs whose files were damaged, altered or lost: they are made whole, or refused before the work."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import assert_same_run, interrupt_after, make_recipe, merged, run_result, write_workplace

from difformer import CheckpointError, create_backbone, load_classifier
from difformer.checkpoints.weights import read_metadata
from difformer.cli import main
from difformer.config.reading import dump, plain
from difformer.engine.loop import state as state_module
from difformer.engine.loop.state import TrainingState
from difformer.engine.runtime.run_folder import RunFolder
from difformer.engine.runtime.stopping import Stopped
from difformer.features import FeatureCacheError
from difformer.verbs.train import run as run_module
from difformer.verbs.train.train import closing_lines, train

pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    return folder, merged(write_workplace(folder), {"training": {"epochs": 2}})


@pytest.fixture(scope="module")
def finished(workplace):
    folder, values = workplace
    train(make_recipe(values, output=str(folder / "finished")))
    return folder / "finished"


@pytest.fixture(scope="module")
def begun(workplace):
    """A run that was stopped in its second epoch."""
    folder, values = workplace
    interrupt_after(lambda: train(make_recipe(values, output=str(folder / "begun"))), 4)
    return folder / "begun"


@pytest.fixture
def stopped(workplace, begun, tmp_path):
    """A copy of the stopped run, and its recipe."""
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run", make_recipe(workplace[1], output=str(tmp_path / "run"))


def contents(folder):
    """The files of a run but its lock, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != ".lock"}


def flip(file, place=None):
    """Changes one bit of a file, by default in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def alter(file):
    """Other weights in a file that is whole."""
    weights = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(weights, file, dict(read_metadata(file)))


def as_before(file):
    """A training state as earlier versions wrote it: without digest, kept classifier, and with the paths."""
    state = TrainingState.load(file)
    state.task = {}
    progress = vars(state.progress)
    state.progress = SimpleNamespace(**progress | {"correct": progress.pop("counts").get("correct", 0)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "FORMAT_VERSION", 1)
        patch.setattr(state_module, "_seal", lambda archive: None)
        state.save(file)


class TestState:
    @pytest.mark.parametrize("damage", [flip, Path.unlink])
    def test_a_run_whose_state_is_damaged_resumes_from_the_one_before(self, finished, stopped, damage, caplog):
        folder, recipe = stopped
        damage(folder / "state.pt")
        train(recipe)
        if damage is not Path.unlink:
            assert "state.pt" in caplog.text
            assert f"resuming from the state before it, {folder / 'state.previous.pt'}" in caplog.text
        assert_same_run(folder, finished)

    def test_a_damaged_state_does_not_take_the_place_of_the_one_before(self, finished, stopped):
        folder, recipe = stopped
        flip(folder / "state.pt")
        interrupt_after(lambda: train(recipe), 1)
        for name in ("state.pt", "state.previous.pt"):
            TrainingState.load(folder / name)
        flip(folder / "state.pt")
        train(recipe)
        assert_same_run(folder, finished)

    def test_without_a_whole_one_there_is_one_error(self, stopped, capsys):
        folder, recipe = stopped
        for name in ("state.pt", "state.previous.pt"):
            flip(folder / name)
        (folder / "again.yaml").write_text(dump(recipe))
        assert main(["train", str(folder / "again.yaml")]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{folder / 'state.pt'} is damaged" in error
        assert "choose another --output, or --overwrite" in error
        assert "weights_only" not in error

    def test_a_state_of_an_earlier_version_resumes(self, workplace, finished, stopped):
        folder, recipe = stopped
        as_before(folder / "state.pt")
        train(recipe)
        assert_same_run(folder, finished)

    @pytest.mark.slow
    def test_no_flipped_bit_changes_what_a_run_comes_to(self, finished, stopped, tmp_path):
        folder, recipe = stopped
        for number in range(40):
            shutil.copytree(folder, tmp_path / str(number))
            file = tmp_path / str(number) / "state.pt"
            flip(file, number * 9973 % file.stat().st_size)
            train(make_recipe(plain_values(recipe), output=str(tmp_path / str(number))))
            assert_same_run(tmp_path / str(number), finished)


def plain_values(recipe):
    return plain(json.loads(json.dumps(plain(vars(recipe)), default=vars)))


class TestBestClassifier:
    @pytest.mark.parametrize("damage", [alter, Path.unlink])
    def test_the_best_weights_are_those_of_the_state(self, finished, stopped, damage):
        folder, recipe = stopped
        assert TrainingState.load(folder / "state.pt").task["kept"]["record"]["epoch"] == 1
        damage(folder / "classifier.safetensors")
        train(recipe)
        assert_same_run(folder, finished)

    def test_altered_between_the_last_evaluation_and_the_test(self, workplace, finished, tmp_path, monkeypatch):
        recipe, original = make_recipe(workplace[1], output=str(tmp_path / "run")), run_module.Run.finish

        def finish(self, last):
            alter(self.folder.classifier)
            return original(self, last)

        monkeypatch.setattr(run_module.Run, "finish", finish)
        train(recipe)
        assert_same_run(tmp_path / "run", finished)

    def test_a_state_of_an_earlier_version_relies_on_the_file_which_is_verified_at_the_start(self, stopped):
        folder, recipe = stopped
        as_before(folder / "state.pt")
        whole = (folder / "classifier.safetensors").read_bytes()
        before = (folder / "state.pt").read_bytes()
        for damage, error in ((alter, CheckpointError), (cut, CheckpointError), (Path.unlink, FileNotFoundError)):
            (folder / "classifier.safetensors").write_bytes(whole)
            damage(folder / "classifier.safetensors")
            with pytest.raises(error, match=r"classifier\.safetensors"):
                train(recipe)
        assert (folder / "state.pt").read_bytes() == before


class TestFinishedRun:
    @pytest.mark.parametrize("damage", [flip, Path.unlink])
    def test_a_best_classifier_that_is_damaged_or_missing_is_made_again(
        self, workplace, finished, tmp_path, damage, caplog, monkeypatch
    ):
        shutil.copytree(finished, tmp_path / "run")
        recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))
        damage(tmp_path / "run" / "classifier.safetensors")
        train(recipe)
        assert "classifier.safetensors is" in caplog.text
        assert_same_run(tmp_path / "run", finished)
        # Whole again, so that nothing is built or trained.
        monkeypatch.setattr("difformer.engine.loop.course.run_epochs", None)
        assert train(recipe)["test"] == run_result(finished)[2]

    def test_a_last_classifier_that_was_cut_off_is_made_again(self, workplace, tmp_path):
        training, evaluation = {"epochs": 1, "ema": 0.5}, {"select": "last", "validation": None}
        recipe = make_recipe(workplace[1], output=str(tmp_path / "run"), training=training, evaluation=evaluation)
        train(recipe)
        shutil.copytree(tmp_path / "run", tmp_path / "whole")
        cut(tmp_path / "run" / "classifier.safetensors")
        train(recipe)
        assert_same_run(tmp_path / "run", tmp_path / "whole")

    def test_damaged_results_are_made_again(self, workplace, finished, tmp_path, caplog):
        shutil.copytree(finished, tmp_path / "run")
        cut(tmp_path / "run" / "results.json")
        train(make_recipe(workplace[1], output=str(tmp_path / "run")))
        assert f"{tmp_path / 'run' / 'results.json'} is damaged" in caplog.text
        assert_same_run(tmp_path / "run", finished)

    def test_results_of_an_earlier_version_count(self, workplace, finished, tmp_path, monkeypatch):
        shutil.copytree(finished, tmp_path / "run")
        results = json.loads((finished / "results.json").read_text())
        old = {name: value for name, value in results.items() if name not in ("files", "sha256")}
        (tmp_path / "run" / "results.json").write_text(json.dumps(old))
        recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))
        with monkeypatch.context() as patch:
            patch.setattr("difformer.engine.loop.course.run_epochs", None)
            assert train(recipe) == old
        cut(tmp_path / "run" / "classifier.safetensors")
        train(recipe)
        assert_same_run(tmp_path / "run", finished)


def cached(values, folder, name="run", **changes):
    return make_recipe(
        values, output=str(folder / name), features="cached", cache={"folder": str(folder / "features")}, **changes
    )


class TestCachedFeatures:
    def test_a_flipped_bit_is_found_before_the_first_step(self, workplace, tmp_path):
        recipe = cached(workplace[1], tmp_path)
        interrupt_after(lambda: train(recipe), 1)
        shard = next((tmp_path / "features").glob("*train-augmented*/view-00-*.safetensors"))
        flip(shard)
        for again in (recipe, cached(workplace[1], tmp_path, "other")):
            with pytest.raises(FeatureCacheError, match=f"{shard.name} is damaged: its content"):
                train(again)

    def test_a_cache_of_more_features_is_verified_too(self, workplace, tmp_path):
        interrupt_after(lambda: train(cached(workplace[1], tmp_path)), 1)
        flip(next((tmp_path / "features").glob("*train-augmented*/view-00-*.safetensors")))
        fewer = cached(workplace[1], tmp_path, "other", extractor={"timesteps": [90]})
        with pytest.raises(FeatureCacheError, match="is damaged: its content"):
            train(fewer)

    def test_it_is_verified_once_a_run(self, workplace, tmp_path, monkeypatch):
        recipe = cached(workplace[1], tmp_path)
        seen = []
        original = run_module.open_or_extract.__globals__["Shard"].verify
        monkeypatch.setattr(
            "difformer.features.shards.Shard.verify", lambda self: (seen.append(self.path), original(self))
        )
        interrupt_after(lambda: train(recipe), 1)
        assert len(seen) == len(set(seen)) == 3
        train(recipe)
        assert len(seen) == 6

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"head": {"name": "linear", "arguments": {"batch_norm": True}}}, "leave a process one at a time"),
            ({"optimizer": {"name": "sdg", "momentum": 0.0}}, r"optimizer\.name 'sdg' cannot be used"),
            ({"schedule": {"warmup_epochs": 5}}, r"schedule\.warmup_epochs must be below training\.epochs"),
        ],
    )
    def test_what_cannot_be_trained_is_refused_before_the_extraction(self, workplace, tmp_path, changes, message):
        values = {**workplace[1], **({"head": changes.pop("head")} if "head" in changes else {})}
        recipe = cached(
            values, tmp_path, extractor={"taps": ["mid"], "timesteps": [90]}, training={"batch_size": 23}, **changes
        )
        with pytest.raises(ValueError, match=message):
            train(recipe)
        assert not (tmp_path / "features").exists()

    def test_other_weights_are_refused_before_they_are_extracted_from(self, workplace, tmp_path):
        folder, values = workplace
        shutil.copy(folder / "backbone.safetensors", tmp_path / "own.safetensors")
        recipe = cached(values, tmp_path, backbone={"name": str(tmp_path / "own.safetensors")})
        interrupt_after(lambda: train(recipe), 1)
        shutil.rmtree(tmp_path / "features")
        backbone = create_backbone(tmp_path / "own.safetensors")
        backbone.unet.out[2].weight.data.add_(1)
        create_backbone(backbone.unet, schedule="linear").save(tmp_path / "own.safetensors", overwrite=True)
        with pytest.raises(ValueError, match="the backbone's weights are not those"):
            train(recipe)
        assert not (tmp_path / "features").exists()


def test_a_run_that_cannot_begin_takes_nothing_from_the_one_before(workplace, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"), schedule={"warmup_epochs": 30})
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="warmup_epochs"):
        train(recipe, overwrite=True)
    assert contents(tmp_path / "run") == before


def test_a_finished_run_without_its_state_is_not_trained_over(workplace, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for file in (tmp_path / "run").glob("state*.pt"):
        file.unlink()
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))
    with pytest.raises(FileExistsError, match="holds a finished run whose training state is gone; choose another"):
        train(recipe)
    train(recipe, overwrite=True)
    assert_same_run(finished, tmp_path / "run")


def test_what_is_told_at_the_end_is_of_the_classifier_that_is_kept(workplace, tmp_path):
    evaluation = {"select": "last", "test": None}
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"), evaluation=evaluation)
    results = train(recipe)
    better = {**results, "best": {**results["last"], "epoch": 1, "validation_top1": 0.99}}
    assert f"{results['last']['validation_top1']:6.1%} top-1 in epoch 2" in closing_lines(recipe, better)[0]


def test_another_process_leaves_the_files_of_a_run_at_work(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    events = tmp_path / "run" / "difformer" / "events.out.tfevents.1700000000.host.12.0"
    events.parent.mkdir()
    events.touch()
    command = "import sys; from difformer.engine.runtime.run_folder import RunFolder; RunFolder(sys.argv[1]).claim()"
    other = subprocess.run([sys.executable, "-c", command, str(folder.path)], capture_output=True, text=True)
    assert "another run is using" in other.stderr
    assert events.exists()
    folder.release()
    assert not events.exists()


def test_only_the_recipe_says_where_things_lie(workplace, tmp_path, monkeypatch):
    folder, values = workplace
    host = "machine.of-somebody.example"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    (tmp_path / "list.txt").write_text("".join(f"class{c}/{i}.png\n" for c in range(3) for i in range(10)))
    changes = {"data": {"list_file": str(tmp_path / "list.txt")}, "training": {"epochs": 1}}
    train(make_recipe(values, output=str(tmp_path / "run"), trackers=["tensorboard"], **changes))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    private = [str(folder), str(tmp_path), host]
    for path in files:
        content = path.read_bytes()
        assert not any(word.encode() in content for word in private) or path.name == "recipe.yaml", path.name
        assert host not in path.name
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "command" not in environment
    assert {"difformer", "commit", "packages", "device", "processes", "threads"} <= environment.keys()


def test_a_killed_evaluation_between_the_states(workplace, finished, tmp_path, monkeypatch):
    """Killed while the last epoch is evaluated, when the classifier of it may be written and its state is not."""
    recipe, original = make_recipe(workplace[1], output=str(tmp_path / "run")), run_module.Run._save

    def killed(self, files, record):
        original(self, files, record)
        raise Stopped("killed", 9)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "_save", killed)
        with pytest.raises(Stopped):
            train(recipe)
    torch.manual_seed(3)
    train(recipe)
    assert_same_run(tmp_path / "run", finished)
    load_classifier(tmp_path / "run" / "classifier.safetensors", backbone=workplace[1]["backbone"]["name"])
