"""Landmarks from a recipe to tables: training, evaluation, prediction, on bright dots whose places are known."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from example_landmarks import NAMES, dots, make_dots, write_landmarks
from PIL import Image
from processes import run_ranks
from safetensors.torch import load_file
from training import assert_same_run, interrupt_after, make_recipe, merged, records_of

from difformer import load_classifier
from difformer.cli import main
from difformer.config.reading import dump
from difformer.tasks import Keypoints
from difformer.verbs.train.dry_run import try_out
from difformer.verbs.train.train import train

pytestmark = pytest.mark.usefixtures("drawn_once")
FILES = {"per_point.csv", "per_image.csv", "points.csv", "error_curve.png", "error_curve.pdf", "scores.npz"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    values = write_landmarks(folder)
    train(make_recipe(values))
    return folder, values


@pytest.fixture(scope="module")
def evaluated(workplace):
    folder, _ = workplace
    assert main(["eval", str(folder / "run")]) == 0
    return folder / "run" / "eval-test"


def short(values, folder, **changes):
    """A recipe of two epochs."""
    quick = {"training": {"epochs": 2}, "evaluation": {"every": 1}, "output": str(folder / "run")}
    return make_recipe(merged(merged(values, quick), changes))


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def places_of(rows):
    return np.asarray([[float(row["x"]), float(row["y"])] for row in rows]).reshape(-1, len(NAMES), 2)


def test_it_learns_to_find_dots(workplace, evaluated, tmp_path):
    folder, _ = workplace
    true = make_dots(tmp_path, "test", [(32, 40)] * 7, seed=2, missing=0.2)
    errors = np.linalg.norm(places_of(rows_of(evaluated / "points.csv")) - true, axis=2)
    seen = ~np.isnan(errors)
    assert 12 < seen.sum() < 21, "some are missing"
    assert np.median(errors[seen]) < 0.5
    assert errors[seen].mean() < 1
    metrics = json.loads((evaluated / "metrics.json").read_text())["metrics"]
    assert metrics["error"] == pytest.approx(errors[seen].mean(), rel=1e-4)
    nme = np.nanmean(errors, axis=1) / np.hypot(32, 40)
    assert metrics["nme"] == metrics["interval"]["mean"] == pytest.approx(np.nanmean(nme), rel=1e-4)
    assert metrics["pck@0.05"] == pytest.approx(np.mean(errors[seen] <= 0.05 * np.hypot(32, 40)))
    records = records_of(folder / "run")
    assert records[-1]["validation_error"] < 1
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 3
    assert {name for name in records[-1] if name.startswith("validation_")} == {
        f"validation_{name}" for name in ("nme", "error", "pck@0.05", "pck@0.1", "failure_rate", "auc")
    }


def test_an_evaluation_leaves_its_tables(workplace, evaluated):
    assert {path.name for path in evaluated.iterdir()} > FILES
    test = json.loads((workplace[0] / "run" / "results.json").read_text())["test"]
    metrics = json.loads((evaluated / "metrics.json").read_text())["metrics"]
    assert {name: metrics[name] for name in test if name in metrics} == {
        name: value for name, value in test.items() if name != "per_point"
    }
    assert [row["point"] for row in rows_of(evaluated / "per_point.csv")] == list(NAMES)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_numbers_do_not_depend_on_the_batch(workplace, evaluated, tmp_path, batch_size):
    command = ["eval", str(workplace[0] / "run"), "--output", str(tmp_path / "out"), "--batch_size", str(batch_size)]
    assert main(command) == 0
    assert_same_points(tmp_path / "out", evaluated)


def test_two_processes_give_the_same(workplace, evaluated, tmp_path):
    run_ranks(2, "eval", workplace[0] / "run", "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["environment"]["processes"] == 2
    assert_same_points(tmp_path / "out", evaluated)


def assert_same_points(folder, other):
    one, two = rows_of(folder / "points.csv"), rows_of(other / "points.csv")
    assert [(row["id"], row["point"]) for row in one] == [(row["id"], row["point"]) for row in two]
    np.testing.assert_allclose(places_of(one), places_of(two), atol=1e-3)


def test_two_processes_learn_the_same(workplace, tmp_path):
    _, values = workplace
    recipes = [short(values, tmp_path / name) for name in ("one", "two")]
    train(recipes[0])
    (tmp_path / "recipe.yaml").write_text(dump(recipes[1]))
    run_ranks(2, "train", tmp_path / "recipe.yaml")
    one, two = (load_file(tmp_path / name / "run" / "classifier.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)
    losses = [[r["train_loss"] for r in records_of(tmp_path / name / "run")] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("feedback", [False, True])
def test_a_stopped_run_resumes_to_the_bit(workplace, tmp_path, feedback):
    """DifFeed's layers learn from the heat maps, too."""
    extractor = {"taps": ["in00", "out03"], "timesteps": [5]}
    if feedback:
        extractor = {"taps": ["out02"], "timesteps": [5], "feedback_taps": ["out03"]}
    evaluation = {"select": "best"}
    recipes = [
        short(workplace[1], tmp_path / name, extractor=extractor, evaluation=evaluation)
        for name in ("whole", "stopped")
    ]
    train(recipes[0])
    interrupt_after(lambda: train(recipes[1]), 4)
    train(recipes[1])
    assert_same_run(*(tmp_path / name / "run" for name in ("whole", "stopped")))
    results = json.loads((tmp_path / "whole" / "run" / "results.json").read_text())
    errors = [record["validation_nme"] for record in records_of(tmp_path / "whole" / "run")]
    assert results["best"]["epoch"] == 1 + int(np.argmin(errors)), "smaller errors are better"
    weights = load_file(tmp_path / "whole" / "run" / "classifier.safetensors")
    learned = {name.partition(".")[0] for name in weights}
    assert learned == ({"head", "feedback"} if feedback else {"head"})
    if feedback:
        untrained = short(workplace[1], tmp_path / "none", extractor=extractor, optimizer={"lr": 1e-12})
        train(untrained)
        before = load_file(tmp_path / "none" / "run" / "classifier.safetensors")
        assert any(not torch.allclose(weights[name], before[name]) for name in weights if "feedback" in name)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("feedback", [[], ["out03"]])
def test_it_can_be_tried_out(workplace, tmp_path, capsys, fake, feedback):
    extractor = {"feedback_taps": feedback, "taps": ["out02"]}
    found = try_out(short(workplace[1], tmp_path, extractor=extractor), fake_data=fake)
    assert np.isfinite(found.losses).all()
    printed = capsys.readouterr().out
    assert ("10 points" if fake else "3 points") in printed
    assert "a step        about" in printed
    assert not (tmp_path / "run").exists()


def test_it_is_saved_with_its_arguments_and_predicts_files(workplace, evaluated, tmp_path):
    """At the size of each image, whether it is turned, and whatever else is predicted."""
    folder, values = workplace
    arguments = {"sigma": 1.5, "flip_test": True, "flip_pairs": {}, "normalize": ["left_eye", "right_eye"]}
    train(short(values, tmp_path, task={"arguments": arguments}))
    classifier = load_classifier(tmp_path / "run" / "classifier.safetensors", backbone=values["backbone"]["name"])
    assert isinstance(classifier.task, Keypoints)
    assert classifier.task.arguments == Keypoints(**arguments).arguments
    classifier = load_classifier(folder / "run" / "classifier.safetensors", backbone=values["backbone"]["name"])
    points = np.asarray([[12.0, 10.0], [30.5, 20.0], [20.0, 25.0]])
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    upright, exif = Image.fromarray(dots(points, 32, 40)), Image.Exif()
    upright.save(pictures / "plain.png")
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(pictures / "deep" / "turned.png", exif=exif)
    Image.fromarray(dots(2 * points, 64, 80, sigma=3.0)).save(pictures / "large.png")
    names = ["plain.png", "deep/turned.png", "large.png"]
    found = classifier.predict([pictures / name for name in names])
    for one, scale, name in zip(found, (1, 1, 2), names, strict=True):
        assert np.abs(one.points.numpy() - scale * points).max() < 1.5 * scale
        (alone,) = classifier.predict(pictures / name)
        torch.testing.assert_close(alone.points, one.points)
    torch.testing.assert_close(found[0].points, found[1].points)
    command = [
        "predict",
        str(folder / "run" / "classifier.safetensors"),
        str(pictures),
        "--output",
        str(tmp_path / "found"),
    ]
    assert main([*command, "--backbone", values["backbone"]["name"]]) == 0
    rows = {row["file"]: [] for row in rows_of(tmp_path / "found" / "predictions.csv")}
    assert sorted(rows) == sorted(names)
    table = rows_of(tmp_path / "found" / "predictions.csv")
    assert [row["point"] for row in table] == [*NAMES] * 3
    large = [row for row in table if row["file"] == "large.png"]
    np.testing.assert_allclose(places_of(large)[0], found[2].points, atol=1e-3)
    assert Image.open(tmp_path / "found" / "overlays" / "large.jpg").size == (80, 64)
    assert Path(tmp_path / "found" / "overlays" / "deep" / "turned.jpg").exists()


def test_a_head_of_ones_own_needs_no_more_than_heat_maps(workplace, tmp_path):
    values = {**workplace[1], "head": {"name": "example_landmarks:OwnHead"}}
    train(short(values, tmp_path))
    losses = [record["train_loss"] for record in records_of(tmp_path / "run")]
    assert losses[1] < losses[0]
    assert main(["eval", str(tmp_path / "run"), "--trust", "example_landmarks"]) == 0
    assert len(rows_of(tmp_path / "run" / "eval-test" / "points.csv")) == 21


def test_runs_are_compared_with_a_paired_interval(workplace, tmp_path):
    """The one that learned for two epochs has the larger errors."""
    train(short(workplace[1], tmp_path))
    runs = [workplace[0] / "run", tmp_path / "run"]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "compared")]) == 0
    better, worse = json.loads((tmp_path / "compared" / "compare.json").read_text())
    errors = [json.loads((run / "results.json").read_text())["test"]["nme"] for run in runs]
    assert [one["interval"]["mean"] for one in (better, worse)] == pytest.approx(errors, rel=1e-5)
    difference = worse["against_first"]["difference"]
    assert difference["mean"] == pytest.approx(errors[1] - errors[0], rel=1e-4)
    assert difference["low"] > 0
    assert worse["against_first"]["p_value"] < 0.05
    assert "NME" in (tmp_path / "compared" / "compare.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"arguments": {"sigma": -1}}}, "sigma must be a finite number above 0, got -1"),
        ({"task": {"arguments": {"normalize": "box"}}}, "normalize box needs the boxes of objects"),
        ({"task": {"arguments": {"normalize": ["left_eye", "tail"]}}}, "normalize names 'tail', which is no point"),
        ({"head": {"name": "upernet", "arguments": {}}}, "head.name: upernet gives maps of logits"),
        ({"evaluation": {"criterion": "pck@0.2"}}, "did you mean 'pck@0.1'"),
        ({"data": {"flip_pairs": {"left_eye": "tail"}}}, "flip_pairs names 'tail', which is no point"),
        ({"task": {"arguments": {"flip_test": True}}}, "flip_pairs must be those of the data set"),
    ],
)
def test_mistakes_are_explained_before_anything_is_computed(workplace, tmp_path, changes, message):
    values = workplace[1]
    if "head" in changes:
        values = {**values, "head": {}}
    with pytest.raises(ValueError, match=message):
        train(short(values, tmp_path, **changes))
    assert not (tmp_path / "run" / "classifier.safetensors").exists()
