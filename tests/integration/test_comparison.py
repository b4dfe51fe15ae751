"""Runs side by side."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from processes import run_ranks
from safetensors.torch import load_file
from training import make_recipe, write_images, write_workplace

from difformer.analysis import paired_bootstrap
from difformer.cli import main
from difformer.engine.runtime.locating import classifier_file
from difformer.verbs.compare import measured as module
from difformer.verbs.compare.compare import compare_runs, short_names
from difformer.verbs.compare.measured import read_measured
from difformer.verbs.train.seeds import recipes_of_seeds
from difformer.verbs.train.train import train

pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same images, the second of which learns nothing."""
    folder = tmp_path_factory.mktemp("work")
    values = write_workplace(folder)
    for name, rate in (("good", 0.05), ("bad", 1e-9)):
        train(make_recipe(values, output=str(folder / "runs" / name), optimizer={"lr": rate}))
    return folder / "runs"


def test_two_runs_on_one_page(runs, tmp_path, capsys):
    good, bad = str(runs / "good"), str(runs / "bad")
    assert main(["compare", good, bad, "--output", str(tmp_path / "both")]) == 0
    folder = tmp_path / "both"
    assert {path.name for path in folder.iterdir()} == {
        "compare.html", "compare.json", "accuracies.png", "accuracies.pdf", "learning.png", "confusion-0.png",
        "confusion-1.png",
    }  # fmt: skip
    assert (folder / "accuracies.pdf").read_bytes().startswith(b"%PDF")
    one, other = (read_measured(str(runs / name), "test", name) for name in ("good", "bad"))
    expected = paired_bootstrap(other.kept["correct"], one.kept["correct"], resamples=10_000)
    first, second = json.loads((folder / "compare.json").read_text())
    assert "against_first" not in first
    assert second["against_first"]["p_value"] == expected.p_value
    assert second["against_first"]["difference"]["mean"] == pytest.approx(
        other.kept["correct"].mean() - one.kept["correct"].mean()
    )
    for name, m in (("good", one), ("bad", other)):
        results = json.loads((runs / name / "results.json").read_text())
        assert m.metrics["top1"] == pytest.approx(results["test"]["top1"])
        assert m.kept["correct"].mean() == pytest.approx(results["test"]["top1"])
        assert np.trace(m.kept["confusion"]) == m.kept["correct"].sum()
        assert m.parameters == results["trained_parameters"]
        assert len(m.history) == 3
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert f"{100 * one.metrics['top1']:.2f}" in page
    assert f"p = {expected.p_value:.2g}" in capsys.readouterr().out


def test_seeds_are_trained_one_after_another_and_compared_with_their_spread(runs, tmp_path, capsys):
    values = write_workplace(tmp_path)
    values["optimizer"] = {"lr": 0.05}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values | {"output": str(tmp_path / "several")}))
    command = ["train", str(tmp_path / "recipe.yaml"), "--seeds", "3", "11"]
    assert main(command) == 0
    results = [json.loads((tmp_path / "several" / name / "results.json").read_text()) for name in ("seed3", "seed11")]
    assert [result["seed"] for result in results] == [3, 11]
    scores = [result["test"]["top1"] for result in results]
    printed = capsys.readouterr().out
    assert re.search(rf"^top-1 +{np.mean(scores):.1%} ± {np.std(scores, ddof=1):.1%}$", printed, re.M)
    alone = make_recipe(values, output=str(tmp_path / "alone"))
    train(replace(alone, training=replace(alone.training, seed=11)))
    one, other = (load_file(tmp_path / name / "classifier.safetensors") for name in ("alone", "several/seed11"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    before = (tmp_path / "several" / "seed3" / "classifier.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "several" / "seed3" / "classifier.safetensors").stat().st_mtime_ns == before

    compare_runs([str(tmp_path / "alone"), str(tmp_path / "several")], tmp_path / "both")
    first, second = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert [run["name"] for run in second["runs"]] == ["several/seed3", "several/seed11"]
    assert [run["metrics"]["top1"] for run in second["runs"]] == scores
    mean = second["against_first"]["difference"]["mean"]
    assert mean == pytest.approx(np.mean(scores) - first["metrics"]["top1"])
    page = (tmp_path / "both" / "compare.html").read_text(encoding="utf-8")
    assert f"{100 * np.mean(scores):.2f} ± {100 * np.std(scores, ddof=1):.2f}" in page
    assert "several (2 seeds)" in page


def test_seeds_on_two_processes_end_as_on_one(tmp_path):
    values = write_workplace(tmp_path) | {"output": str(tmp_path / "several"), "seeds": [2, 3]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    printed = run_ranks(2, "train", tmp_path / "recipe.yaml").stdout
    assert printed.count("[2/2] seed 3") == 1
    alone = make_recipe(values | {"seeds": ()}, output=str(tmp_path / "alone"))
    train(replace(alone, training=replace(alone.training, seed=3)))
    one, other = (load_file(tmp_path / name / "classifier.safetensors") for name in ("alone", "several/seed3"))
    for key, weights in one.items():
        torch.testing.assert_close(weights, other[key], atol=1e-5, rtol=1e-4)


def test_runs_that_do_not_belong_together_are_no_seeds(tmp_path, capsys):
    values = write_workplace(tmp_path) | {"output": str(tmp_path / "several")}
    values["training"] |= {"epochs": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = ["train", str(tmp_path / "recipe.yaml")]
    assert main([*command, "--seeds", "0"]) == 0
    assert main([*command, "--seeds", "1", "--optimizer.lr", "0.5"]) == 1
    error = capsys.readouterr().err
    assert "several holds a run of another recipe in seed0: optimizer.lr was 0.05 and is now 0.5" in error
    assert not (tmp_path / "several" / "seed1").exists()
    assert main([*command, "--seeds", "1", "--training.workers", "1"]) == 0
    (tmp_path / "several" / "seed1" / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match="seed1 is not finished; the same `difformer train` resumes it"):
        compare_runs([str(tmp_path / "several"), str(tmp_path / "several" / "seed0")], tmp_path / "both")
    assert main(["eval", str(tmp_path / "several")]) == 1
    assert f"holds runs of several seeds; give one of them, such as {tmp_path}/several/seed0" in capsys.readouterr().err
    # A run is one, whatever lies in its folder.
    shutil.copytree(tmp_path / "several" / "seed1", tmp_path / "several" / "seed0" / "seed1")
    assert classifier_file(str(tmp_path / "several" / "seed0")).parent.name == "seed0"
    assert main([*command, "--seeds", "0", "--output", str(tmp_path / "several" / "seed0")]) == 1
    assert "is the folder of a single run; give another --output for several seeds" in capsys.readouterr().err


def test_without_validation_the_spread_of_seeds_is_that_of_the_training_images(tmp_path, capsys):
    values = write_workplace(tmp_path) | {"output": str(tmp_path / "several"), "evaluation": {}}
    values["training"] |= {"epochs": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--seeds", "0", "1"]) == 0
    assert re.search(r"^measured on +train\ntop-1 +.*% ± .*%$", capsys.readouterr().out, re.M)


def test_seeds_of_few_labels_draw_other_images(tmp_path):
    recipe = make_recipe(write_workplace(tmp_path))
    few = replace(recipe, seeds=(0, 1), data=replace(recipe.data, k_shot=2))
    assert [(one.training.seed, one.data.seed) for one in recipes_of_seeds(few)] == [(0, 0), (1, 1)]
    assert [one.data.seed for one in recipes_of_seeds(replace(recipe, seeds=(4, 5)))] == [recipe.data.seed] * 2
    assert recipes_of_seeds(recipe) == [recipe]
    with pytest.raises(ValueError, match="several are trained by train_seeds"):
        train(few)
    for wrong, message in (((1, 1), "different numbers"), ((-1,), "at least 0"), (("a",), "seeds must be an integer")):
        with pytest.raises(ValueError, match=message):
            replace(recipe, seeds=wrong)


def test_what_was_measured_is_not_measured_again(runs, tmp_path, monkeypatch):
    compare_runs([str(runs / "good"), str(runs / "bad")], tmp_path / "one")
    monkeypatch.setattr(module, "evaluate_classifier", lambda *a, **k: pytest.fail("measured again"))
    compare_runs([str(runs / "good" / "eval-test"), str(runs / "bad")], tmp_path / "two")


def test_a_run_that_was_trained_anew_is_measured_anew(runs, tmp_path):
    good = read_measured(str(runs / "good"), "test", "good")
    read_measured(str(runs / "bad"), "test", "bad")
    copy = tmp_path / "copy"
    shutil.copytree(runs / "bad", copy)
    shutil.copy(runs / "good" / "classifier.safetensors", copy)
    anew = read_measured(str(copy), "test", "anew")
    assert anew.metrics["top1"] == good.metrics["top1"]
    np.testing.assert_array_equal(anew.kept["correct"], good.kept["correct"])
    (copy / "classifier.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no classifier\.safetensors yet"):
        read_measured(str(copy), "test", "unfinished")


def test_a_page_of_evaluations_names_their_split_and_takes_the_place_of_a_longer_one(runs, tmp_path):
    for name in ("good", "bad"):
        read_measured(str(runs / name), "test", name)
        shutil.copytree(runs / name / "eval-test", tmp_path / name)
    shutil.copytree(tmp_path / "bad", tmp_path / "third")
    three = [str(tmp_path / name) for name in ("good", "bad", "third")]
    compare_runs(three, tmp_path / "out", split="val")
    page = compare_runs(three[:2], tmp_path / "out", split="val", overwrite=True)
    assert "15 images of test" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "confusion-2.png").exists()


def test_runs_of_other_images_are_refused(runs, tmp_path):
    write_images(tmp_path / "images", {"test": 4}, seed=1)
    output = str(tmp_path / "eval")
    assert main(["eval", str(runs / "good"), "--data.root", str(tmp_path / "images"), "--output", output]) == 0
    with pytest.raises(ValueError, match="were measured on different images"):
        compare_runs([str(runs / "good"), output], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["{runs}/good"], "at least two runs"),
        (["{runs}/good", "{runs}/good"], "must be different ones"),
        (["{runs}/good", "{runs}"], "neither the folder of a run nor one that"),
        (["{runs}/good", "nowhere"], "nowhere is neither"),
    ],
)
def test_wrong_words(runs, sources, message, tmp_path, capsys):
    words = [source.format(runs=runs) for source in sources]
    assert main(["compare", *words, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_a_damaged_evaluation_is_made_anew_or_says_what_to_do(runs, tmp_path):
    compare_runs([str(runs / "good"), str(runs / "bad")], tmp_path / "one")
    file = runs / "bad" / "eval-test" / "predictions.csv"
    kept = file.read_text()
    file.write_text(kept.replace("class1", "class2", 1))
    with pytest.raises(ValueError, match=r"eval-test/predictions\.csv is damaged.*--overwrite"):
        compare_runs([str(runs / "good"), str(file.parent)], tmp_path / "two")
    # Of a run, there is all that it takes.
    compare_runs([str(runs / "good"), str(runs / "bad")], tmp_path / "two")
    assert file.read_text() == kept
    # What is wrong with the run itself is not laid upon the evaluation.
    history = runs / "bad" / "metrics.jsonl"
    kept = history.read_text()
    history.write_text(kept + "\n")
    with pytest.raises(ValueError, match=r"^\S*metrics\.jsonl is not what the run has written; the run's command"):
        compare_runs([str(runs / "good"), str(runs / "bad")], tmp_path / "three")
    history.write_text(kept)


def test_names_are_as_short_as_they_can_be():
    assert short_names(["a/one", "b/two"]) == ["one", "two"]
    assert short_names(["a/one/x", "b/two/x"]) == ["one/x", "two/x"]
