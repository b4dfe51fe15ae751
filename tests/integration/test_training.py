"""Training runs: what they learn, measure, refuse and leave."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import launch, run_ranks
from support import tiny_unet
from training import assert_same_run, interrupt_after, make_recipe, records_of, run_result, write_workplace

from difformer import create_backbone, load_classifier
from difformer.cli import main
from difformer.config.reading import dump, read_yaml
from difformer.data import collate, create_dataset
from difformer.verbs.train.train import train

ROOT = Path(__file__).parents[2]
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


def test_training_learns_and_leaves_everything_in_its_folder(finished, workplace):
    folder, _ = workplace
    names = {path.name for path in finished.iterdir() if path.name != ".lock"}
    assert names == {
        "classifier.safetensors", "curves.png", "environment.json", "latest.safetensors", "metrics.jsonl",
        "recipe.yaml", "results.json", "splits.json", "state.pt", "state.previous.pt",
    }  # fmt: skip
    weights, records, test = run_result(finished)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[-1]["images"] == 3 * 24
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert test["num_images"] == 15
    splits = json.loads((finished / "splits.json").read_text())
    assert not set(splits["train"]["ids"]) & set(splits["holdout"]["ids"])
    assert len(splits["train"]["ids"]) == 24
    classifier = load_classifier(finished / "classifier.safetensors", backbone=folder / "backbone.safetensors")
    assert classifier.class_names == ("class0", "class1", "class2")
    # Only what was trained is in the file.
    assert {name.partition(".")[0] for name in weights} == {"head"}
    assert "unet" not in str(torch.load(finished / "state.pt", weights_only=True)["optimizer"].keys())


def test_the_best_epoch_is_that_of_the_first_best_score(finished):
    results = json.loads((finished / "results.json").read_text())
    scores = [record["validation_top1"] for record in run_result(finished)[1]]
    assert results["best"]["epoch"] == scores.index(max(scores)) + 1


def test_a_finished_run_is_not_run_again(finished, workplace):
    before = (finished / "state.pt").stat().st_mtime_ns
    results = train(make_recipe(workplace[1], output=str(finished)))
    assert results["last"]["epoch"] == 3
    assert (finished / "state.pt").stat().st_mtime_ns == before


def test_the_backbone_does_not_change(finished, workplace):
    folder, _ = workplace
    digest = create_backbone(folder / "backbone.safetensors").digest
    assert digest == create_backbone(tiny_unet(), schedule="linear").digest


def test_two_processes_learn_what_one_does(workplace, finished, tmp_path):
    _, values = workplace
    recipe = make_recipe(values, output=str(tmp_path / "run"), training={"accumulation": 2})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    launch(2, ROOT / "train" / "train.py", tmp_path / "recipe.yaml")
    (weights, records, test), (weights2, records2, test2) = run_result(finished), run_result(tmp_path / "run")
    for name, tensor in weights.items():
        torch.testing.assert_close(weights2[name], tensor, rtol=1e-4, atol=1e-5)
    assert [record["images"] for record in records2] == [record["images"] for record in records]
    assert [record["train_loss"] for record in records2] == pytest.approx([r["train_loss"] for r in records], rel=1e-4)
    assert test2["num_images"] == test["num_images"] == 15
    assert test2["nll"] == pytest.approx(test["nll"], rel=1e-4)


def test_a_folder_that_is_no_run_is_left_alone(workplace, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(FileExistsError, match="holds something that is no run"):
        train(make_recipe(workplace[1], output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_early_stopping_ends_after_evaluations_without_improvement(workplace, tmp_path):
    recipe = make_recipe(
        workplace[1], output=str(tmp_path / "run"), optimizer={"lr": 1e-9}, training={"epochs": 50, "early_stopping": 2}
    )
    assert train(recipe)["epochs"] == 3


def test_the_command_line_trains_and_prints_the_recipe(workplace, tmp_path, capsys):
    _, values = workplace
    (tmp_path / "recipe.yaml").write_text(dump(make_recipe(values)))
    options = ["--output", str(tmp_path / "run"), "--training.epochs", "1"]
    assert main(["train", str(tmp_path / "recipe.yaml"), *options]) == 0
    *lines, folder, following, predict = capsys.readouterr().out.splitlines()
    test = run_result(tmp_path / "run")[2]
    low, high = (f"{test['top1_interval'][end]:.1%}".removesuffix("%") for end in ("low", "high"))
    top1 = next(line for line in lines if line.startswith("top-1"))
    assert f"{test['top1']:.1%}  {low}% … {high}% with 95% confidence" in top1
    assert folder.split()[-1] == str(tmp_path / "run")
    assert following.split()[1:] == ["difformer", "eval", str(tmp_path / "run")]
    assert f"{tmp_path / 'run' / 'classifier.safetensors'} FOLDER --csv out.csv --backbone" in predict
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "recipe.yaml"), *options, "--print_config"])
    assert "epochs: 1" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "recipe.yaml"), "--optimizer.rate", "1"]) == 1
    assert "unknown key 'optimizer.rate'; did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr must be a number above 0, got nan"),
        ({"optimizer": {"lr": float("inf")}}, r"optimizer\.lr must be a number above 0, got inf"),
        ({"optimizer": {"momentum": "0.9"}}, r"optimizer\.momentum must be a number in \[0, 1\), got '0.9'"),
        ({"optimizer": {"weight_decay": True}}, r"optimizer\.weight_decay must be a number at least 0, got True"),
        ({"schedule": {"warmup_epochs": -1}}, r"schedule\.warmup_epochs must be a number at least 0"),
        ({"training": {"sync_batch_norm": "no"}}, r"training\.sync_batch_norm must be true or false"),
        ({"training": {"epochs": 2.5}}, r"training\.epochs must be a positive integer"),
        ({"trackers": "tensorboard"}, "trackers must be a list, got 'tensorboard'"),
        ({"extractor": {"taps": "mid"}}, r"extractor\.taps must be a list, got 'mid'"),
        ({"features": "cached", "training": {"mixup": 0.2}}, "a cache has none"),
    ],
)
def test_a_wrong_value_says_what_was_expected(workplace, changes, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(workplace[1], **changes)


def test_an_error_of_the_main_process_ends_all_with_its_message(workplace, tmp_path):
    recipe = make_recipe(workplace[1], output=str(tmp_path / "run"))
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    (tmp_path / "run" / "splits.json").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(dump(recipe))
    done = run_ranks(2, "train", tmp_path / "recipe.yaml", check=False)
    assert done.returncode != 0
    assert done.stderr.count("splits.json is a folder") == 2


def test_two_processes_measure_the_classifier_that_is_kept(workplace, tmp_path):
    """Batch statistics are those of the main process, in its evaluation and in the others'."""
    _, values = workplace
    recipe = make_recipe(
        values,
        output=str(tmp_path / "run"),
        extractor={"feedback_taps": ["out03"], "taps": ["out02"], "timesteps": [90]},
        training={"epochs": 1},
    )
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    out = run_ranks(2, "train", tmp_path / "recipe.yaml").stdout
    assert out.count("results in") == 1
    classifier = load_classifier(tmp_path / "run" / "latest.safetensors", backbone=values["backbone"]["name"]).eval()
    holdout = create_dataset(recipe.data, "holdout")
    batch = collate([holdout[i] for i in range(len(holdout))])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(classifier(batch.images, batch.ids), batch.labels)
    # One process's own statistics would change it by 1e-4.
    assert run_result(tmp_path / "run")[1][0]["validation_loss"] == pytest.approx(float(loss), rel=1e-6)


def test_batch_statistics_of_a_single_image_are_refused_at_the_beginning(workplace, tmp_path):
    head = {"name": "linear", "arguments": {"batch_norm": True}}
    values = {**workplace[1], "head": head}
    recipe = make_recipe(
        values, output=str(tmp_path), extractor={"taps": ["mid"], "timesteps": [90]}, training={"batch_size": 23}
    )
    with pytest.raises(ValueError, match=r"the 24 images leave a process one at a time.*training\.batch_size"):
        train(recipe)


def damage(file):
    """Makes an image unreadable that begins and ends as a whole one."""
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)


def test_an_unreadable_image_alone_in_its_batch_is_skipped_in_evaluation(workplace, tmp_path):
    folder, values = workplace
    shutil.copytree(folder / "images", tmp_path / "images")
    damage(tmp_path / "images" / "test" / "class1" / "0.png")
    data = {"root": str(tmp_path / "images"), "on_bad_image": "skip"}
    recipe = make_recipe(
        values, output=str(tmp_path / "run"), data=data, training={"epochs": 1}, evaluation={"batch_size": 1}
    )
    assert train(recipe)["test"]["num_images"] == 14


def test_an_error_of_one_process_in_an_evaluation_ends_all_with_its_message(workplace, tmp_path):
    folder, values = workplace
    shutil.copytree(folder / "images", tmp_path / "images")
    damage(tmp_path / "images" / "test" / "class2" / "4.png")
    data = {"root": str(tmp_path / "images")}
    recipe = make_recipe(values, output=str(tmp_path / "run"), data=data, training={"epochs": 1})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    done = run_ranks(2, "train", tmp_path / "recipe.yaml", check=False)
    assert done.returncode != 0
    assert done.stderr.count("cannot be read as an image") == 2, done.stderr


def test_runs_of_different_precision_follow_each_other(workplace, tmp_path):
    for name, precision in (("one", "no"), ("two", "bf16"), ("three", "no")):
        recipe = make_recipe(workplace[1], output=str(tmp_path / name), training={"epochs": 1, "precision": precision})
        train(recipe)
    losses = [run_result(tmp_path / name)[1][0]["train_loss"] for name in ("one", "two", "three")]
    assert losses[0] == losses[2] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_run_that_cannot_begin_leaves_nothing(workplace, tmp_path):
    _, values = workplace
    with pytest.raises(FileNotFoundError, match="no folder"):
        train(make_recipe(values, output=str(tmp_path / "runs" / "one"), data={"root": str(tmp_path / "nowhere")}))
    assert not (tmp_path / "runs" / "one").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder"):
        train(make_recipe(values, output=str(tmp_path / "mine"), data={"root": str(tmp_path / "nowhere")}))
    assert (tmp_path / "mine").is_dir()


def test_a_folder_and_a_backbone_are_enough(workplace, tmp_path, monkeypatch):
    """Everything else suits them: taps, timestep and the size of the images."""
    _, values = workplace
    monkeypatch.chdir(tmp_path)
    options = ["--data.name", "folder", "--data.root", values["data"]["root"], "--training.workers", "0"]
    options += ["--backbone.name", values["backbone"]["name"], "--training.epochs", "1"]
    assert main(["train", *options]) == 0
    recipe = read_yaml(tmp_path / "runs/classifier/recipe.yaml")
    assert (recipe["data"]["size"], recipe["extractor"]["taps"], recipe["extractor"]["timesteps"]) == (
        16,
        ["out01"],
        [50],
    )
    classifier = load_classifier(
        tmp_path / "runs/classifier/classifier.safetensors", backbone=values["backbone"]["name"]
    )
    assert [(key.tap, key.t) for key in classifier.extractor.specs] == [("out01", 50)]


def test_a_run_that_was_begun_with_numbers_goes_on_with_names(workplace, tmp_path):
    _, values = workplace
    numbered = make_recipe(values, output=str(tmp_path / "run"), extractor={"taps": [4, 5]})
    interrupt_after(lambda: train(numbered), 2)
    named = make_recipe(values, output=str(tmp_path / "run"), extractor={"taps": ["in03", "mid"]})
    with pytest.raises(ValueError, match=r"extractor\.taps was \['in03', 'mid'\] and is now \['in03', 'out00'\]"):
        train(make_recipe(values, output=str(tmp_path / "run"), extractor={"taps": ["in03", "out00"]}))
    train(named)
    train(make_recipe(values, output=str(tmp_path / "other"), extractor={"taps": ["in03", "mid"]}))
    assert_same_run(tmp_path / "run", tmp_path / "other")


def test_few_labels_get_their_least_steps(workplace, tmp_path, capsys, caplog):
    _, values = workplace
    few = {"output": str(tmp_path / "run"), "data": {"k_shot": 2}}
    # Six images are one step of eight.
    results = train(make_recipe(values, **few, training={"least_steps": 7}))
    assert (results["epochs"], results["images"]) == (7, 42)
    assert "7 epochs in place of 3, since 6 training images" in capsys.readouterr().out
    # They are evaluated as often as three epochs would have been.
    assert sum("validation_loss" in record for record in records_of(tmp_path / "run")) == 4
    assert "steps in all" not in caplog.text
    few["output"] = str(tmp_path / "without")
    assert train(make_recipe(values, **few))["epochs"] == 3
    assert "3 steps in all, of 6 training images: a head learns little in so few" in caplog.text


def test_a_classifier_that_is_chosen_on_reported_images_says_so(workplace, tmp_path, caplog):
    _, values = workplace
    evaluation = {"validation": "test", "test": None}
    train(make_recipe(values, output=str(tmp_path / "run"), evaluation=evaluation))
    assert "the classifier is chosen on test, the images that are reported" in caplog.text
