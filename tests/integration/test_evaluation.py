import csv
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from processes import run_ranks
from training import make_recipe, merged, write_images, write_workplace

from difformer import load_classifier
from difformer.cli import main
from difformer.config.reading import build, dump
from difformer.engine.config.build import build_backbone, build_dataset, build_extractor
from difformer.features.pooling import PooledFeatures
from difformer.verbs.eval import evaluate as evaluation
from difformer.verbs.probe.probe import run_probe
from difformer.verbs.probe.recipe import ProbeRecipe
from difformer.verbs.train.train import train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("drawn_once")
EVALUATION = {"confusion.csv", "confusion.png", "metrics.json", "per_class.csv", "predictions.csv"}

# Both verbs in one start of the processes.
BOTH = """
import sys
from difformer.cli import main
run, recipe, evaluated, probed = sys.argv[1:]
status = main(["eval", run, "--output", evaluated, "--batch_size", "auto"])
sys.exit(status or main(["probe", recipe, "--method", "ridge", "--output", probed]))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A trained run; 23 images to train, 6 to choose and 11 to test, which no number of processes divides."""
    folder = tmp_path_factory.mktemp("work")
    values = write_workplace(folder)
    os.remove(folder / "images" / "train" / "class0" / "9.png")
    for name in ("class0/4", "class1/3", "class1/4", "class2/0"):
        os.remove(folder / "images" / "test" / f"{name}.png")
    # Never measured while training, so that nothing resets the noise before the classifier is kept.
    values = merged(values, {"evaluation": {"validation": None, "select": "last"}, "training": {"epochs": 2}})
    recipe = make_recipe(values)
    (folder / "recipe.yaml").write_text(dump(recipe))
    train(recipe)
    return folder, values


@pytest.fixture(scope="module")
def evaluated(workplace):
    folder, _ = workplace
    assert main(["eval", str(folder / "run")]) == 0
    return folder / "run" / "eval-test"


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def report(folder):
    return json.loads((folder / "metrics.json").read_text())


def assert_same_metrics(folder, other):
    """Counts and what follows from them are equal; sums of logarithms, but for rounding."""
    metrics, same = report(folder)["metrics"], report(other)["metrics"]
    for name in ("nll", "ece"):
        assert metrics.pop(name) == pytest.approx(same.pop(name), rel=1e-5)
    assert metrics == same


def logits_by_hand(folder, values):
    """One image after another, without data loaders or engine."""
    run = folder / "run"
    classifier = load_classifier(run / "classifier.safetensors", backbone=values["backbone"]["name"])
    dataset = build_dataset(make_recipe(values).data, "test")
    samples = [dataset[place] for place in range(len(dataset))]
    with torch.no_grad():
        logits = torch.cat([classifier(sample.image[None], [sample.id]) for sample in samples])
    return logits.double(), torch.tensor([sample.label for sample in samples]), dataset


def test_an_evaluation_is_what_the_logits_say(workplace, evaluated):
    folder, values = workplace
    logits, labels, dataset = logits_by_hand(folder, values)
    probabilities = logits.softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    found = report(evaluated)
    assert {path.name for path in evaluated.iterdir()} == EVALUATION
    assert found["data"] == {"split": "test", "images": 11, "digest": dataset.digest, "skipped": []}
    metrics = found["metrics"]
    assert metrics["num_images"] == 11
    assert metrics["top1"] == np.mean(predicted == labels.numpy())
    recalls = [np.mean(predicted[labels == c] == c) for c in range(3)]
    assert metrics["mean_per_class"] == pytest.approx(np.mean(recalls))
    assert metrics["nll"] == pytest.approx(-np.log(probabilities[np.arange(11), labels]).mean(), rel=1e-5)
    assert [float(row["recall"]) for row in table(evaluated / "per_class.csv")] == pytest.approx(recalls)
    assert [int(row["images"]) for row in table(evaluated / "per_class.csv")] == [4, 3, 4]
    confusion = np.zeros((3, 3), dtype=int)
    np.add.at(confusion, (labels.numpy(), predicted), 1)
    rows = table(evaluated / "confusion.csv")
    assert [[int(row[f"class{c}"]) for c in range(3)] for row in rows] == confusion.tolist()
    predictions = table(evaluated / "predictions.csv")
    assert [int(row["id"]) for row in predictions] == dataset.ids.tolist()
    assert [row["name"] for row in predictions] == dataset.names
    assert [row["label"] for row in predictions] == [f"class{label}" for label in labels]
    assert [row["predicted"] for row in predictions] == [f"class{c}" for c in predicted]
    assert [float(row["probability"]) for row in predictions] == pytest.approx(probabilities.max(axis=1), rel=1e-5)


def test_a_run_is_measured_again_as_at_its_end(workplace, evaluated):
    folder, _ = workplace
    at_the_end = json.loads((folder / "run" / "results.json").read_text())["test"]
    found = report(evaluated)["metrics"]
    assert found == {name: at_the_end[name] for name in found}


def test_every_number_of_processes_counts_each_image_once(workplace, evaluated, tmp_path):
    folder, _ = workplace
    assert main(["probe", str(folder / "recipe.yaml"), "--method", "ridge", "--output", str(tmp_path / "p1")]) == 0
    expected = json.loads((tmp_path / "p1" / "results.json").read_text())
    assert [split["images"] for split in expected["data"]] == [23, 6, 11]
    (tmp_path / "both.py").write_text(BOTH)
    for n in (2, 3):
        printed = run_ranks(
            n, tmp_path / "both.py", folder / "run", folder / "recipe.yaml", tmp_path / f"e{n}", tmp_path / f"p{n}"
        ).stdout
        assert printed.count("results in") == 2
        found = report(tmp_path / f"e{n}")
        assert found["environment"]["processes"] == n
        assert found["data"] == report(evaluated)["data"]
        assert_same_metrics(tmp_path / f"e{n}", evaluated)
        for name in ("confusion.csv", "per_class.csv"):
            assert (tmp_path / f"e{n}" / name).read_text() == (evaluated / name).read_text()
        for row, other in zip(
            table(tmp_path / f"e{n}" / "predictions.csv"), table(evaluated / "predictions.csv"), strict=True
        ):
            assert float(row.pop("probability")) == pytest.approx(float(other.pop("probability")), rel=1e-5)
            assert row == other
        probed = json.loads((tmp_path / f"p{n}" / "results.json").read_text())
        for name in ("candidates", "chosen", "test", "data", "dimensions"):
            assert probed[name] == expected[name]
        assert (tmp_path / f"p{n}" / "predictions.csv").read_text() == (tmp_path / "p1" / "predictions.csv").read_text()


def test_cached_features_give_the_same(workplace, evaluated, tmp_path):
    folder, _ = workplace
    options = ["--features", "cached", "--cache.folder", str(tmp_path / "cache"), "--cache.dtype", "float32"]
    assert main(["eval", str(folder / "run"), "--output", str(tmp_path / "out"), *options]) == 0
    assert report(tmp_path / "out")["data"] == report(evaluated)["data"]
    assert_same_metrics(tmp_path / "out", evaluated)


@pytest.mark.parametrize("features", ["live", "cached"])
def test_images_that_cannot_be_read_are_named(workplace, tmp_path, features):
    folder, _ = workplace
    shutil.copytree(folder / "images", tmp_path / "images")
    (tmp_path / "images" / "test" / "class0" / "1.png").write_bytes(b"no image")
    command = ["eval", str(folder / "run"), "--output", str(tmp_path / "out"), "--data.root", str(tmp_path / "images")]
    # A batch of its own, of which nothing is left; nothing is looked at beforehand.
    command += ["--batch_size", "1", "--data.check_images", "none", "--features", features]
    command += ["--cache.folder", str(tmp_path / "cache")]
    assert main(command) == 1
    assert os.listdir(tmp_path) == ["images"] or features == "cached"
    assert not (tmp_path / "out").exists()
    assert main([*command, "--data.on_bad_image", "skip"]) == 0
    found = report(tmp_path / "out")
    assert (found["data"]["images"], found["data"]["skipped"]) == (10, [1])
    assert found["metrics"]["num_images"] == 10
    assert [row["name"] for row in table(tmp_path / "out" / "predictions.csv")][:2] == ["class0/0.png", "class0/2.png"]


def test_a_classifier_file_is_measured_on_data_that_are_given(workplace, evaluated, tmp_path):
    folder, values = workplace
    data = {"data": {"name": "folder", "root": str(folder / "images")}, "backbone": values["backbone"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    file = folder / "run" / "classifier.safetensors"
    options = ["--config", str(tmp_path / "data.yaml"), "--output", str(tmp_path / "out")]
    assert main(["eval", str(file), *options]) == 0
    # The size of the images, which no option gave, is what the classifier was trained on.
    assert report(tmp_path / "out")["recipe"]["data"]["size"] == 16
    assert_same_metrics(tmp_path / "out", evaluated)
    exported = load_classifier(file, backbone=values["backbone"]["name"]).save_pretrained(tmp_path / "exported")
    assert evaluation.classifier_file(str(exported)) == exported / "model.safetensors"


def test_data_may_lack_classes_of_the_classifier(workplace, evaluated, tmp_path, capsys):
    """Without the training images, whose folders name the classes, the classifier names them."""
    folder, _ = workplace
    shutil.copytree(folder / "images" / "test", tmp_path / "images" / "test")
    shutil.rmtree(tmp_path / "images" / "test" / "class0")
    options = ["--data.root", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    assert main(["eval", str(folder / "run"), *options]) == 0
    assert "without images 1 of 3 classes" in capsys.readouterr().out
    found = {row["name"]: row["predicted"] for row in table(tmp_path / "out" / "predictions.csv")}
    before = {row["name"]: row["predicted"] for row in table(evaluated / "predictions.csv")}
    assert {row["label"] for row in table(tmp_path / "out" / "predictions.csv")} == {"class1", "class2"}
    assert set(found) == {name for name in before if not name.startswith("class0")}


def test_results_are_kept_until_they_are_replaced(workplace, evaluated, tmp_path, capsys):
    folder, _ = workplace
    shutil.copytree(evaluated, tmp_path / "out")
    command = ["eval", str(folder / "run"), "--output", str(tmp_path / "out"), "--split", "holdout"]
    assert main(command) == 1
    assert "holds results already; choose another --output, or --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert report(tmp_path / "out")["data"]["images"] == 6
    assert "holdout        6 images, 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError("disk full"), 1)])
def test_an_interrupted_evaluation_leaves_nothing(workplace, tmp_path, monkeypatch, error, status):
    folder, _ = workplace

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(evaluation, "write_json", fail)
    assert main(["eval", str(folder / "run"), "--output", str(tmp_path / "out")]) == status
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("classifier", "options", "message"),
    [
        ("images", [], "is not the folder of a run: it has no recipe.yaml"),
        ("nowhere", [], "there is no run and no classifier"),
        ("unfinished", [], "has no classifier.safetensors yet; train it further"),
        ("backbone.safetensors", [], "not a classifier"),
        ("damaged.safetensors", [], "is not a weight file"),
        ("run/classifier.safetensors", [], "required: data.name"),
        ("run/classifier.safetensors", ["--data.name", "folder", "--data.root", "{}/images"], "give --output"),
        ("run", ["--split", "val"], "has no split 'val'; it has"),
        ("run", ["--splt", "val"], "unknown key 'splt'; did you mean 'split'"),
        (
            "run",
            ["--data.root", "{}/others"],
            "only of the data set: 'zebra'; only of the classifier: 'class1', 'class2'",
        ),
        ("run", ["--data.root", "{}/empty"], "has no split 'test'"),
        ("run", ["--output", "{}/images"], "holds test, which is no result"),
        ("run", ["--batch_size", "0"], "batch_size must be a positive integer"),
    ],
)
def test_mistakes_are_explained_before_anything_is_computed(
    workplace, tmp_path, capsys, monkeypatch, classifier, options, message
):
    folder, _ = workplace
    for name in ("others/test/class0", "others/test/zebra", "empty", "unfinished"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("class0", "zebra"):
        shutil.copy(folder / "images" / "test" / "class0" / "0.png", folder / "others" / "test" / name)
    shutil.copy(folder / "recipe.yaml", folder / "unfinished")
    (folder / "damaged.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(evaluation, "build_backbone", lambda *arguments, **options: pytest.fail("opened the backbone"))
    options = ["--output", str(tmp_path / "out"), *options] if classifier == "run" else options
    assert main(["eval", str(folder / classifier), *(option.format(folder) for option in options)]) == 1
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval/evaluate.py nowhere", "no run and no classifier nowhere"),
        ("train/train.py nowhere", "no configuration file nowhere"),
        ("difformer probe nowhere", "no configuration file nowhere"),
    ],
)
def test_the_scripts_and_the_module_are_the_verbs(command, message, monkeypatch, capsys):
    script, *words = command.split()
    monkeypatch.setattr(sys, "argv", [script, *words])
    run = runpy.run_module if script == "difformer" else runpy.run_path
    with pytest.raises(SystemExit) as exit_:
        run(script if script == "difformer" else str(ROOT / script), run_name="__main__")
    assert exit_.value.code == 1
    assert message in capsys.readouterr().err


def probe(values, output, **changes):
    recipe = {name: values[name] for name in ("data", "backbone", "extractor")} | {"workers": 0, "batch_size": 16}
    return run_probe(build(ProbeRecipe, merged(recipe, {"output": str(output), **changes})))


@pytest.mark.parametrize("method", ["knn", "logistic", "ridge"])
def test_probes_tell_colours_apart(workplace, tmp_path, method):
    _, values = workplace
    found = probe(values, tmp_path / "out", method=method)
    assert {path.name for path in (tmp_path / "out").iterdir()} == EVALUATION - {"metrics.json"} | {
        "recipe.yaml", "results.json",
    }  # fmt: skip
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["tables"].keys() == {"per_class.csv", "confusion.csv", "predictions.csv"}
    assert found == {name: value for name, value in written.items() if name not in ("tables", "sha256")}
    assert found["validation"] == found["test"]["top1"] == 1
    assert len(table(tmp_path / "out" / "predictions.csv")) == found["test"]["num_images"] == 11
    # Only what a method's outputs tell is reported.
    assert ("nll" in found["test"], "ece" in found["test"]) == {
        "knn": (False, True), "logistic": (True, True), "ridge": (False, False),
    }[method]  # fmt: skip
    # Written out, the recipe gives the same again.
    again = ["--output", str(tmp_path / "again")]
    assert main(["probe", str(tmp_path / "out" / "recipe.yaml"), *again]) == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text())["test"] == found["test"]


def test_pooled_features_are_read_without_augmentation_in_order(workplace, tmp_path):
    _, values = workplace
    recipe = build(ProbeRecipe, {name: values[name] for name in ("data", "backbone", "extractor")})
    extractor = build_extractor(recipe.extractor, build_backbone(recipe.backbone))
    dataset = build_dataset(recipe.data, "train")
    sample = dataset[3]
    maps = extractor(sample.image[None], [sample.id])
    for normalize in (False, True):
        vector = PooledFeatures(extractor, 2, normalize=normalize)(sample.image[None], torch.tensor([sample.id]))
        parts = [torch.nn.functional.adaptive_avg_pool2d(m, 2).flatten(1) for m in maps.values()]
        expected = torch.cat([part / part.norm() if normalize else part for part in parts], dim=1)
        torch.testing.assert_close(vector, expected)


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    """Images whose colours are hard to tell, and the same with other labels on those to test."""
    root = tmp_path_factory.mktemp("faint")
    write_images(root / "right", {"train": 20, "test": 10}, contrast=2)
    shutil.copytree(root / "right", root / "wrong")
    for old, new in (("class0", "moved"), ("class1", "class0"), ("class2", "class1"), ("moved", "class2")):
        (root / "wrong" / "test" / old).rename(root / "wrong" / "test" / new)
    return root


GRIDS = {"knn": {"ks": [1, 3, 10, 30], "temperatures": [0.01, 1.0]}, "ridge": {"strengths": [1e-5, 1e-1, 10.0, 1e3]}}


@pytest.mark.parametrize("method", list(GRIDS))
def test_the_choice_never_looks_at_the_test_split(workplace, faint, tmp_path, method):
    _, values = workplace
    found = {
        labels: probe(
            values,
            tmp_path / labels,
            method=method,
            data={"root": str(faint / labels), "holdout": 0.3},
            **GRIDS[method],
        )
        for labels in ("right", "wrong")
    }
    right, wrong = found["right"], found["wrong"]
    accuracies = [candidate["validation"] for candidate in right["candidates"]]
    assert len(set(accuracies)) > 1
    assert right["validation"] == max(accuracies)
    for name in ("candidates", "chosen", "validation"):
        assert right[name] == wrong[name]
    assert right["test"] != wrong["test"]


def test_after_the_choice_validation_images_are_learned_from_too(workplace, faint, tmp_path):
    _, values = workplace
    data = {"root": str(faint / "right"), "holdout": 0.5}
    both, train_only, none = (
        probe(values, tmp_path / name, method="logistic", data=data, strengths=[0.1], **changes)
        for name, changes in (("both", {}), ("train", {"refit": False}), ("none", {"test": None}))
    )
    assert both["candidates"] == train_only["candidates"] == none["candidates"]
    assert both["test"]["nll"] != train_only["test"]["nll"]
    assert none["test"] is None
    assert {path.name for path in (tmp_path / "none").iterdir()} == {"recipe.yaml", "results.json"}


def test_a_label_subset_is_all_that_is_learned_from(workplace, faint, tmp_path):
    _, values = workplace
    data = {"root": str(faint / "right"), "holdout": 0.5, "k_shot": 2}
    usual, train_only = (
        probe(values, tmp_path / name, method="logistic", data=data, strengths=[0.1], **changes)
        for name, changes in (("usual", {}), ("train", {"refit": False}))
    )
    assert [split["images"] for split in usual["data"]] == [6, 30, 30]
    assert usual["refit"] is False
    assert usual["test"] == train_only["test"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ks", "[24]"], "ks: 24 neighbours were asked for, but there are 23 training images"),
        (["--test", "val"], "has no split 'val'"),
        (["--extractor.feedback_taps", "[out01]"], "a probe trains nothing"),
        (["--head.name", "linear"], "unknown key 'head.name'"),
        (["--output", "{}/images"], "which is no result"),
    ],
)
def test_mistakes_in_probes_are_explained(workplace, tmp_path, capsys, options, message):
    folder, _ = workplace
    command = ["probe", str(folder / "recipe.yaml"), "--output", str(tmp_path / "out")]
    assert main([*command, *(option.format(folder) for option in options)]) == 1
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)
