"""A task of somebody's own package: its data set has targets in place of classes."""

import csv
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import small_unet

from difformer import create_backbone, load_classifier
from difformer.checkpoints import CheckpointError
from difformer.classifier import read_description
from difformer.cli import main
from difformer.data import DataConfig, DataError, Source, create_dataset
from difformer.data.fake import FakeImages
from difformer.engine.loop.state import Progress
from difformer.registry import UntrustedError
from difformer.tasks import TASKS, Measurements, Task, find_task
from difformer.tasks.task import task_metric

TASK = "own_package.tasks:Regression"
ARGUMENTS = {"names": ["brightness"], "scale": 0.5}


def named(task):
    """Options for a task that takes the same arguments."""
    return ["--task.name", task, "--task.arguments", json.dumps(ARGUMENTS)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, installed):
    """The file of a recipe with the task, and a head of this package."""
    folder = tmp_path_factory.mktemp("task")
    create_backbone(small_unet(), schedule="linear").save(folder / "backbone.safetensors")
    values = {
        "output": str(folder / "run"),
        "backbone": {"name": str(folder / "backbone.safetensors")},
        "extractor": {"taps": ["in00"], "timesteps": [10]},
        "head": {"name": "linear"},
        "task": {"name": TASK, "arguments": ARGUMENTS},
        "data": {"name": "own_package.data:shades", "size": 32, "holdout": 0.25, "augmentation": "none"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "cosine"},
        "training": {"epochs": 12, "batch_size": 6, "workers": 0},
        "evaluation": {"validation": "holdout", "select": "best", "test": "test"},
        "trackers": [],
    }
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def run(recipe):
    """The folder of its run."""
    assert main(["train", str(recipe)]) == 0
    return recipe.parent / "run"


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_its_first_metric_chooses(run):
    found, results = records(run), json.loads((run / "results.json").read_text())
    assert found[-1]["train_loss"] < found[0]["train_loss"] / 4
    assert results["best"] == min(found, key=lambda record: record["validation_mae"])
    # Guessing the mean of numbers spread evenly over [0, 1] is wrong by a quarter.
    assert results["test"]["mae"] < 0.15
    assert results["test"].keys() == {"num_images", "mae", "within"}
    assert {"train_within", "validation_within"} <= found[0].keys()


def test_it_is_saved_and_loaded(run, not_imported):
    file, backbone = run / "classifier.safetensors", run.parent / "backbone.safetensors"
    description = read_description(file)
    assert description["task"] == {"type": TASK, "arguments": {"names": ["brightness"], "scale": 0.5}}
    assert description["class_names"] == ["brightness"]
    with pytest.raises(UntrustedError, match=r"the task own_package\.tasks:Regression is code .* trust='own_package'"):
        load_classifier(file, backbone=backbone)
    assert "own_package" not in sys.modules
    loaded = load_classifier(file, backbone=backbone, trust="own_package")
    assert isinstance(loaded.task, Task)
    (found,) = loaded.predict(Image.new("RGB", (40, 40), (204, 204, 204)))
    assert found["brightness"] == pytest.approx(0.8, abs=0.25)


def test_it_is_evaluated(run, capsys, not_imported):
    assert main(["eval", str(run)]) == 1
    assert "is code" in capsys.readouterr().err
    assert main(["eval", str(run), "--trust", "own_package", "--output", str(run.parent / "eval")]) == 0
    printed = capsys.readouterr().out
    measured = json.loads((run.parent / "eval" / "metrics.json").read_text())["metrics"]
    test = json.loads((run / "results.json").read_text())["test"]
    assert measured == pytest.approx(test, abs=1e-5)
    assert f"mae            {measured['mae']:.3g}" in printed
    with (run.parent / "eval" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    dataset = create_dataset({"name": "own_package.data:shades", "size": 32}, "test")
    errors = [abs(float(row["brightness"]) - float(y)) for row, y in zip(rows, dataset.targets[:, 0], strict=True)]
    assert np.mean(errors) == pytest.approx(measured["mae"], abs=1e-5)
    assert main(["eval", str(run), "--trust", "own_package", "--metrics", "top1", "--overwrite"]) == 1
    assert (
        "metrics must be a metric of the task, or one of your own as package.module:Name, got 'top1'"
        in capsys.readouterr().err
    )


def test_its_targets_are_no_classes_of_the_backbone(recipe, tmp_path, capsys):
    create_backbone(small_unet(num_classes=5), schedule="linear").save(tmp_path / "backbone.safetensors")
    words = [str(recipe), "--backbone.name", str(tmp_path / "backbone.safetensors"), "--output", str(tmp_path / "run")]
    for verb in ("train", "extract"):
        assert main([verb, *words, "--extractor.conditioning.y", "label"]) == 1
        assert f"those of the task {TASK} are targets and no classes; give a class" in capsys.readouterr().err
    assert main(["train", *words, "--extractor.conditioning.y", "2", "--training.epochs", "1"]) == 0


def test_it_predicts(run, tmp_path, not_imported):
    (tmp_path / "images").mkdir()
    for name, value in (("dark", 10), ("light", 240)):
        Image.new("RGB", (50, 40), (value,) * 3).save(tmp_path / "images" / f"{name}.png")
    options = ["--csv", str(tmp_path / "out.csv"), "--backbone", str(run.parent / "backbone.safetensors")]
    model = str(run / "classifier.safetensors")
    assert main(["predict", model, str(tmp_path / "images"), *options, "--trust", "own_package"]) == 0
    with (tmp_path / "out.csv").open() as file:
        dark, light = csv.DictReader(file)
    assert dark.keys() == {"file", "brightness"}
    assert float(dark["brightness"]) < float(light["brightness"])


def test_cached_features_learn_the_same_targets(recipe, run):
    words = ["--features", "cached", "--cache.folder", str(recipe.parent / "cache")]
    assert main(["train", str(recipe), *words, "--output", str(recipe.parent / "cached")]) == 0
    assert records(recipe.parent / "cached")[0]["train_loss"] == pytest.approx(records(run)[0]["train_loss"], rel=1e-4)
    # The cache that is there is opened again, with its targets.
    assert main(["train", str(recipe), *words, "--output", str(recipe.parent / "again")]) == 0
    ends = [records(recipe.parent / name)[-1]["validation_mae"] for name in ("cached", "again")]
    assert ends[0] == ends[1]


def test_a_run_that_was_stopped_ends_as_one_that_was_not(recipe, run, monkeypatch):
    from difformer.verbs.train.run import Run

    class Killed(BaseException):
        pass

    end_epoch = Run.end_epoch

    def dies(self, record):
        if record["epoch"] == 5:
            raise Killed
        return end_epoch(self, record)

    arguments = ["train", str(recipe), "--output", str(recipe.parent / "stopped")]
    monkeypatch.setattr(Run, "end_epoch", dies)
    with pytest.raises(Killed):
        main(arguments)
    monkeypatch.undo()
    assert main(arguments) == 0
    drop = ("seconds", "images_per_second")
    ends = [
        [{name: value for name, value in record.items() if name not in drop} for record in records(folder)]
        for folder in (run, recipe.parent / "stopped")
    ]
    assert ends[0] == ends[1]


def test_a_dry_run_needs_no_data(recipe, capsys):
    assert main(["train", str(recipe), "--dry_run", "--fake_data", "--output", str(recipe.parent / "dry")]) == 0
    assert "1 outputs" in capsys.readouterr().out


def test_training_starts_from_a_classifier_of_the_same_task_alone(recipe, run, capsys):
    words = ["--init", str(run), "--output", str(recipe.parent / "init")]
    assert main(["train", str(recipe), *words, "--training.epochs", "1", "--optimizer.lr", "1e-6"]) == 0
    assert records(recipe.parent / "init")[0]["train_loss"] < records(run)[0]["train_loss"]
    words = ["--init", str(run), "--output", str(recipe.parent / "other")]
    assert main(["train", str(recipe), *words, "--task.arguments", '{"names": ["brightness"], "scale": 2}']) == 1
    assert re.search(r"task\.arguments\.scale: 0\.5 there, 2 here", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task.name", "regresion"], "task.name must be one of classification"),
        (["--task.name", "own_package.tasks:Nothing"], "own_package.tasks has no Nothing"),
        (["--task.name", "own_package.metrics:np.ndarray"], "the task own_package.metrics:np.ndarray cannot be built"),
        (
            ["--task.name", "builtins:dict"],
            "must be as difformer.tasks.RowTask says; dict lacks .*losses.*write_tables",
        ),
        (["--task.arguments", "{names: [a], scal: 2}"], "cannot be built with names=.*scal=2: .*'scal'"),
        (
            ["--evaluation.criterion", "macro_f1"],
            "evaluation.criterion must be a metric of the task, or one .*; known are mae, within",
        ),
        (["--evaluation.criterion", "withn"], "got 'withn'; did you mean 'within'"),
        (named("own_package.odd_tasks:Unmeasured"), "has no metrics; its metrics must name at least one"),
        (
            named("own_package.odd_tasks:OneLoss"),
            r"OneLoss must give one loss an image, \(6,\), got .* \(1,\)",
        ),
        (named("own_package.odd_tasks:Miscounted"), "Miscounted must count .* within: 1 numbers, got 2"),
        (["--training.mixup", "0.2"], "training.mixup is for the task classification, but the task here is own_pack"),
        (["--training.label_smoothing", "0.1"], "training.label_smoothing is for the task classification"),
    ],
)
def test_wrong_tasks(recipe, words, message, capsys):
    assert main(["train", str(recipe), *words, "--output", str(recipe.parent / "wrong")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (recipe.parent / "wrong" / "state.pt").exists()


def test_targets_without_their_task_and_classes_without_theirs(recipe, capsys):
    words = ["--output", str(recipe.parent / "wrong")]
    assert main(["train", str(recipe), "--data.name", "own_package.data:halves", *words]) == 1
    assert "has classes and no targets, and the task Regression predicts (1,)" in capsys.readouterr().err
    assert main(["train", str(recipe), "--task.arguments", "{names: [a, b]}", *words]) == 1
    assert "has targets of shape (1,), and the task Regression predicts (2,)" in capsys.readouterr().err
    words += ["--task.name", "classification"]
    assert main(["train", str(recipe), *words]) == 1
    assert "has targets of shape (1,), and the task Classification predicts classes" in capsys.readouterr().err


def test_damaged_descriptions(run, tmp_path):
    from support import rewrite_metadata

    from difformer.checkpoints.weights import read_metadata

    file = tmp_path / "c.safetensors"
    for task in ([], {"type": 3, "arguments": {}}, {"type": "segmentatio", "arguments": {}}, {"type": TASK}):
        shutil.copy(run / "classifier.safetensors", file)
        description = json.loads(read_metadata(file)["description"]) | {"task": task}
        rewrite_metadata(file, {"description": json.dumps(description)})
        with pytest.raises(CheckpointError):
            load_classifier(file, backbone=run.parent / "backbone.safetensors", trust="own_package")


@pytest.mark.parametrize("verb", ["probe", "sweep", "select"])
def test_verbs_that_fit_classes_refuse_targets_before_an_image_is_read(verb, recipe, tmp_path, capsys, monkeypatch):
    from difformer.data.source import Source

    monkeypatch.setattr(Source, "decode", lambda *arguments: pytest.fail("read"))
    values = json.loads(recipe.read_text())
    words = ["--data.name", values["data"]["name"], "--data.size", "32", "--data.holdout", "0.25"]
    words += ["--backbone.name", values["backbone"]["name"], "--output", str(tmp_path / "out"), "--workers", "0"]
    assert main([verb, *words]) == 1
    assert "has targets of shape (1,), and the task Classification predicts classes" in capsys.readouterr().err


def test_fractional_counts_and_rates_that_are_no_metrics(recipe):
    folder = recipe.parent / "graded"
    words = [*named("own_package.odd_tasks:Graded"), "--training.epochs", "1", "--output", str(folder)]
    assert main(["train", str(recipe), *words]) == 0
    assert records(folder)[0]["train_grade"] == pytest.approx(0.25)


def test_whole_counts_stay_whole():
    progress = Progress()
    for count in (3.0, 0.5, 0.5):
        progress.add(1.0, 2, {"a": count})
    assert (progress.counts, type(progress.counts["a"])) == ({"a": 4}, int)
    progress.add(1.0, 2, {"a": 0.25})
    assert progress.counts == {"a": 4.25}


def test_a_task_under_a_shorter_name_starts_from_its_own_run(recipe, run, capsys, monkeypatch):
    # As where nothing has registered it.
    monkeypatch.delitem(TASKS._things, "own_regression")
    words = [*named("own_package_short:Regression"), "--training.epochs", "1", "--init", str(run)]
    assert main(["train", str(recipe), *words, "--output", str(recipe.parent / "short")]) == 0
    words = ["--task.name", "classification", "--data.name", "own_package.data:halves"]
    words += ["--init", str(run), "--output", str(recipe.parent / "classes")]
    assert main(["train", str(recipe), *words]) == 1
    error = capsys.readouterr().err
    assert f"task: {TASK} there, classification here" in error
    assert "--trust" not in error


def test_an_evaluation_compares_no_names_of_outputs_and_looks_at_its_folder_first(recipe, tmp_path, capsys):
    words = [
        *named("own_package.odd_tasks:Counting"),
        "--training.epochs",
        "1",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(["train", str(recipe), *words]) == 0
    words = ["--trust", "own_package", "--output", str(tmp_path / "eval")]
    assert main(["eval", str(tmp_path / "run"), *words]) == 0
    (tmp_path / "run" / "classifier.safetensors").unlink()
    assert main(["eval", str(tmp_path / "run"), *words]) == 1
    assert "holds results already" in capsys.readouterr().err


def test_stand_ins_have_the_targets_of_the_task():
    config = DataConfig("folder", size=8)
    images = FakeImages(config, "train", 5, label=torch.tensor([1.0, 2.0]))
    assert images.targets.tolist() == [[1.0, 2.0]] * 5
    assert FakeImages(config, "train", 5).targets is None


def test_measurements_are_finite_floats():
    measured = Measurements(2, {"mae": np.float32(0.5)})
    assert type(measured.value("mae")) is float
    with pytest.raises(ValueError, match="must be finite, but mae is nan"):
        Measurements(2, {"mae": np.float64("nan")})


def test_what_a_task_calls_a_metric_is_one():
    task = find_task(TASK, {"names": ["a"]})
    task.metrics = {"mae": len}
    with pytest.raises(ValueError, match=r"Regression: mae must be a difformer\.analysis\.Metric, got builtin"):
        task_metric(task, "mae", "metrics")


def test_targets_of_a_source():
    images = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="2 images need as many targets, got 3"):
        Source("s", np.zeros(2, dtype=int), ("a",), images.__getitem__, targets=np.zeros((3, 1)))
    with pytest.raises(DataError, match=r"image 1 has the target \[nan\], which is not finite; 1 images"):
        Source("s", [], (), images.__getitem__, targets=[[0.0], [np.nan], [1.0]])
    for targets in (3.0, np.zeros((3, 0))):
        with pytest.raises(DataError, match=r"targets must be \(N, …\), at least one number an image"):
            Source("s", [], (), images.__getitem__, targets=targets)
    with pytest.raises(DataError, match="s holds no image"):
        Source("s", [], (), images.__getitem__, targets=np.zeros((0, 2)))
    with pytest.raises(DataError, match="image 1 has the target nan"):
        Source("s", [], (), images.__getitem__, targets=[0.0, np.nan])
    one, other = (Source("s", [], (), images.__getitem__, targets=[[0.0], [value], [1.0]]) for value in (1.0, 2.0))
    assert one.digest != other.digest
    assert torch.equal(one.label(1), torch.tensor([1.0]))


def test_verbs_for_classes_refuse_it(run, recipe, tmp_path, capsys):
    assert main(["eval", str(run), "--trust", "own_package", "--output", str(tmp_path / "eval")]) == 0
    shutil.copytree(tmp_path / "eval", tmp_path / "other")
    assert main(["compare", str(tmp_path / "eval"), str(tmp_path / "other"), "--output", str(tmp_path / "out")]) == 1
    assert "whose images cannot be compared one by one" in capsys.readouterr().err
    assert main(["info", str(run / "classifier.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "outputs: 1 (brightness)" in printed
    assert f"task: {TASK.partition(':')[0]}" in printed


def test_a_card_says_what_it_is(run, tmp_path):
    classifier = load_classifier(
        run / "classifier.safetensors", backbone=run.parent / "backbone.safetensors", trust="own_package"
    )
    card = (classifier.save_pretrained(tmp_path) / "README.md").read_text()
    assert f"for the task {TASK}" in card
    assert 'trust="own_package"' in card


def test_find_task():
    assert find_task("classification").arguments == {}
    with pytest.raises(ValueError, match="unknown task 'segment'"):
        find_task("segment")
