"""Sweeps: many probes from one pass a timestep, and what they recommend."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from training import merged, write_subject

from difformer.analysis import share_interval
from difformer.analysis.probes import Labelled, create_probe
from difformer.cli import main
from difformer.config.reading import build, plain, read_yaml
from difformer.data import DataConfig
from difformer.engine.extraction.pooled import SplitFeatures
from difformer.engine.runtime import resources as opening
from difformer.engine.runtime.processes import solver_device
from difformer.engine.runtime.run_folder import RunFolder
from difformer.taps import TapSpec
from difformer.tasks.classification.certainty import Chooser
from difformer.verbs.probe.probe import run_probe
from difformer.verbs.sweep import fitting
from difformer.verbs.sweep import sweep as module
from difformer.verbs.sweep.fitting import fit_places
from difformer.verbs.sweep.recipe import SweepRecipe
from difformer.verbs.sweep.recommending import recommend, recommended_recipes
from difformer.verbs.sweep.scores import Score, best_score, pareto_front
from difformer.verbs.sweep.sweep import sweep

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("drawn_once")
CHOOSER = Chooser(np.repeat([0, 1], [15, 5]), "holdout", "top1")


@pytest.fixture
def values(tmp_path):
    """A sweep of two timesteps, as YAML holds it."""
    return write_subject(tmp_path, "sweep") | {
        "taps": ["in03", "mid", "out01"],
        "timesteps": [50, 200],
        "pools": [1, 2],
        "strengths": [0.01, 1.0],
        "batch_size": 8,
    }


def make(values, **changes):
    return build(SweepRecipe, plain(merged(values, changes)))


@pytest.mark.parametrize("method", ["ridge", "logistic", "sgd"])
def test_probes_together_are_the_probes_alone(values, tmp_path, method):
    values |= {"method": method}
    scores = sweep(make(values))
    assert [(s.tap, s.t, s.pool) for s in scores] == [
        (tap, t, pool) for t in (50, 200) for tap in ("in03", "mid", "out01") for pool in (1, 2)
    ]
    # Of the other methods some, with each tap, timestep and pooling among them.
    for score in scores if method == "ridge" else scores[::5]:
        alone = make(values).probe(score.tap, score.t, score.pool)
        found = run_probe(build(type(alone), {**vars(alone), "output": str(tmp_path / "alone")}), overwrite=True)
        assert found["validation"] == pytest.approx(score.accuracy)
        assert found["chosen"] == score.settings


def test_leaves_table_pictures_and_a_recipe_that_trains(values, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(json.dumps(values))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--test", "test", "--batch_size", "auto"]) == 0
    folder = tmp_path / "sweep"
    assert str(folder / "scores.png") in capsys.readouterr().out
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(rows) == 12
    best = max(rows, key=lambda row: (float(row["accuracy"]), -float(row["gflop"])))
    measured = json.loads((folder / "best" / "results.json").read_text())
    assert measured["features"] == [{"tap": best["tap"], "t": int(best["t"]), "round": 0}]
    assert measured["test"]["num_images"] == 15
    for name in ("scores.png", "pareto.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).with_suffix(".pdf").is_file()
    assert set(read_yaml(folder / "recommended.yaml")["extractor"]["taps"]) == {"in03", "mid", "out01"}
    options = ["--data.name", "folder", "--data.root", values["data"]["root"], "--data.size", "16"]
    options += ["--backbone.name", values["backbone"]["name"], "--training.epochs", "1", "--training.workers", "0"]
    options += ["--output", str(tmp_path / "run"), "--training.batch_size", "8", "--overwrite"]
    for name in ("recommended.yaml", "recommended_diffeed.yaml"):
        assert main(["train", str(folder / name), *options]) == 0
        # Over recipes of either kind of head, with cached features or without.
        for recipe in ("elpv", "elpv_diffeed"):
            over = ["train", str(ROOT / "train" / "configs" / f"{recipe}.yaml"), "--config", str(folder / name)]
            with pytest.raises(SystemExit) as status:
                main([*over, "--print_config"])
            assert status.value.code == 0


def test_goes_on_with_the_timesteps_that_are_missing(values, monkeypatch):
    first = sweep(make(values, timesteps=[50]))
    read = []
    original = module.read_split
    monkeypatch.setattr(module, "read_split", lambda *a, **k: read.append(k["title"]) or original(*a, **k))
    both = sweep(make(values))
    assert both[: len(first)] == first
    assert read == ["t = 200, reading train", "t = 200, reading holdout"]
    assert sweep(make(values), overwrite=True) == both
    assert len(read) == 2 + 4


def test_costs_are_those_of_the_size_that_is_read(values):
    recipe = make(values, timesteps=[50], data={"size": 32})
    scores = sweep(recipe)
    folder = Path(recipe.output)
    dearest = max(score.gflop for score in scores)
    assert f"These together take {dearest:.3g} GFLOP" in (folder / "recommended.yaml").read_text()
    # As earlier versions counted, and wrote without a digest.
    (folder / "scores-0050.json").write_text(json.dumps([asdict(score) | {"gflop": 1e-3} for score in scores]))
    assert sweep(recipe) == scores
    assert f"{dearest}" in (folder / "scores.csv").read_text()


def test_another_sweep_in_the_folder_is_refused(values):
    first = sweep(make(values, timesteps=[50]))
    with pytest.raises(ValueError, match=r"holds another sweep: recipe\.seed was 0 and is now 1"):
        sweep(make(values, seed=1))
    # How it is computed, and where the files are, makes no other sweep of it.
    how = {"download": True, "attention": "math", "gradient_checkpointing": True}
    data = {"download": True, "check_images": "none"}
    assert sweep(make(values, timesteps=[50], backbone=how, data=data)) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "nowhere"}, "nowhere"),
        ({"timesteps": [50, 1000]}, "1000"),
        ({}, r"30 vectors of 480 numbers each need about 104 kB of memory, and 1 kB are free; give fewer taps"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_read(values, changes, message, monkeypatch):
    if not changes:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(module, "read_split", lambda *a, **k: pytest.fail("read"))
    with pytest.raises((ValueError, OSError), match=message):
        sweep(make(values, **changes))


def test_a_test_split_of_other_classes_is_refused_before_anything_is_read(values, monkeypatch):
    original = opening.build_dataset

    def build_other(config, split, **options):
        return SimpleNamespace(class_names=("cat",)) if split == "test" else original(config, split, **options)

    monkeypatch.setattr(opening, "build_dataset", build_other)
    with pytest.raises(ValueError, match=r"class names of test \(1\) are not those of train \(3\)"):
        sweep(make(values, test="test"))


@pytest.mark.gpu
def test_probes_are_fitted_on_the_gpu(values, monkeypatch):
    original, devices = module.judge, set()

    def noting(scorer, unseen, **options):
        devices.add(unseen.features.device.type)
        return original(scorer, unseen, **options)

    monkeypatch.setattr(module, "judge", noting)
    sweep(make(values, timesteps=[50]))
    assert devices == {"cuda"}


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", "cuda:1"), ("mps", "cpu"), ("cpu", "cpu")])
def test_solvers_run_where_there_is_float64(device, expected):
    assert solver_device(torch.device(device)) == torch.device(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": []}, "timesteps must be one or more different numbers"),
        ({"pools": [1, 1]}, "pools must be one or more different numbers"),
        ({"pools": [0]}, "pools must be"),
        ({"method": "knn"}, "method must be one of ridge, logistic, sgd"),
        ({"test": "holdout"}, "test: holdout would be measured on the images that choose"),
        ({"strengths": [-1.0]}, "strengths must be"),
        ({"rates": [0.1, 0.1]}, "rates must be"),
    ],
)
def test_wrong_values(values, changes, message):
    with pytest.raises(ValueError, match=message):
        make(values, **changes)


def test_unknown_taps_name_the_known(values):
    with pytest.raises(ValueError, match=r"unknown tap .in99.; expected one of in00"):
        sweep(make(values, taps=["in99"]))


def score(tap, t, accuracy, gflop, pool=1):
    return Score(tap, 1, t, pool, {"l2": 1.0}, accuracy, gflop)


def test_the_front_holds_what_no_cheaper_one_beats():
    scores = [score("a", 1, 0.5, 1), score("b", 1, 0.4, 2), score("c", 1, 0.7, 3), score("d", 1, 0.7, 4)]
    assert [s.tap for s in pareto_front(scores)] == ["a", "c"]
    assert best_score(scores).tap == "c"


def test_where_smaller_is_better_the_front_and_the_best_are_the_smallest():
    scores = [score("a", 1, 0.5, 1), score("b", 1, 0.6, 2), score("c", 1, 0.2, 3), score("d", 1, 0.2, 4)]
    assert [s.tap for s in pareto_front(scores, larger_is_better=False)] == ["a", "c"]
    assert best_score(scores, larger_is_better=False).tap == "c"
    taps = {tap: TapSpec(tap, i + 1, 4, 8, 3 - i) for i, tap in enumerate("abcd")}
    assert recommend(scores, taps, 1, larger_is_better=False) == (["c"], [1])


def test_of_equal_scores_the_cheapest_is_recommended_framed_and_printed_first(tmp_path, monkeypatch, capsys):
    taps = {tap: TapSpec(tap, i + 1, 4, 8, 3 - i) for i, tap in enumerate(("a", "b", "c"))}
    scores = [score(tap, t, 0.5, taps[tap].flops) for tap in taps for t in (10, 50)]
    framed = []
    monkeypatch.setattr(module, "draw_sweep", lambda accuracies, chosen, path, **how: framed.append(chosen))
    recipe = SweepRecipe(DataConfig("folder"))
    module._conclude(recipe, taps, scores, RunFolder(tmp_path), CHOOSER)
    assert framed == [("c", 10, 1)]
    printed, written = capsys.readouterr().out, (tmp_path / "recommended.yaml").read_text()
    assert printed.startswith("c      t = 10   pool 1: 50.00% (29.9 … 70.1), ")
    for text in (printed, written):
        assert "by top1 of 20 images of holdout, with 95 % intervals; the best of 6 is partly luck" in text
    assert "# The best single feature: c at t = 10, pool 1: 50.00% (29.9 … 70.1)," in written
    assert recommend(scores, taps, 1) == (["c"], [10])


def test_recommends_the_best_blocks_of_different_sizes_and_the_best_timesteps():
    sizes = {"in00": 32, "in01": 16, "mid": 8, "out00": 8, "out01": 16}
    taps = {tap: TapSpec(tap, i + 1, 4, size, float(i)) for i, (tap, size) in enumerate(sizes.items())}
    level = {"in00": 0.1, "in01": 0.5, "mid": 0.8, "out00": 0.9, "out01": 0.6}
    scores = [score(tap, t, level[tap] - abs(t - 50) / 1000, 1.0) for tap in taps for t in (10, 50, 90, 300)]
    assert recommend(scores, taps) == (["in00", "out00", "out01"], [10, 50, 90])
    assert recommend(scores, taps, 2) == (["out00", "out01"], [10, 50])
    assert recommend(scores, {tap: taps[tap] for tap in taps}, 5)[0] == list(taps)
    assert np.isclose(best_score(scores).accuracy, 0.9)


def test_the_recommended_recipes_read_what_scored_best():
    sizes = {"in00": 16, "in01": 8, "mid": 8, "out00": 8, "out01": 16}
    taps = {tap: TapSpec(tap, i + 1, 4, size, 1e9 * (i + 1)) for i, (tap, size) in enumerate(sizes.items())}
    level = {"in00": 0.1, "in01": 0.9, "mid": 0.2, "out00": 0.3, "out01": 0.8}
    scores = [score(tap, t, level[tap] - abs(t - 50) / 1000, 1.0) for tap in taps for t in (10, 50)]
    found = {name: yaml.safe_load(text) for name, text in recommended_recipes(scores, taps, CHOOSER).items()}
    assert found["recommended.yaml"]["extractor"] == {
        "taps": ["in01", "out00", "out01"], "timesteps": [10, 50], "feedback_taps": [],
    }  # fmt: skip
    assert found["recommended_diffeed.yaml"]["extractor"] == {
        "feedback_taps": ["out00", "out01"], "taps": ["out01"], "timesteps": [50],
    }  # fmt: skip
    # Two timesteps to the last of the five blocks.
    assert "These together take 10 GFLOP an image." in recommended_recipes(scores, taps, CHOOSER)["recommended.yaml"]
    encoder = [s for s in scores if s.tap in ("in00", "in01", "mid")]
    assert list(recommended_recipes(encoder, taps, CHOOSER)) == ["recommended.yaml"]


def test_a_mean_over_classes_is_as_certain_as_its_smallest_class_lets_it_be():
    low, high = CHOOSER.interval(0.5)
    balanced = replace(CHOOSER, criterion="mean_per_class")
    assert high - low < np.subtract(*balanced.interval(0.5)[::-1])
    assert balanced.interval(0.5) == share_interval(0.5, 15)


def test_what_is_no_share_has_no_interval():
    loss = replace(CHOOSER, criterion="loss")
    assert (loss.interval(1.25), loss.certain(1.25), loss.larger_is_better) == (None, "1.25", False)
    assert (
        loss.caution(6) == "by loss of 20 images of holdout; the best of 6 is partly luck, so expect "
        "worse on other images"
    )
    # Written in %, though nothing is known of its interval.
    f1 = replace(CHOOSER, criterion="macro_f1")
    assert (f1.interval(0.5), f1.certain(0.5)) == (None, "50.0%")
    assert CHOOSER.certain(0.5) == "50.00% (29.9 … 70.1)"


@pytest.mark.parametrize("method", ["ridge", "logistic", "sgd"])
def test_probes_fitted_together_are_those_fitted_alone(method, monkeypatch):
    places = {("a", 1): slice(0, 4), ("a", 2): slice(4, 12), ("b", 1): slice(12, 16), ("b", 2): slice(16, 24)}
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    vectors = (rng.normal(size=(60, 24)) + labels[:, None] * rng.normal(size=24)).astype(np.float32)
    train = SplitFeatures(vectors, labels, places)
    probe = create_probe(method)
    together = dict(fit_places(probe, train, 3, torch.device("cpu")))
    monkeypatch.setattr(fitting, "_MOST_BYTES", 1)
    one_by_one = dict(fit_places(probe, train, 3, torch.device("cpu")))
    assert set(together) == set(one_by_one) == set(places)
    for (tap, pool), scorer in together.items():
        features = train.of(tap, pool)
        alone = probe.fit(Labelled(features, torch.from_numpy(labels)), 3)
        for others in (one_by_one[tap, pool], alone):
            for (settings, logits), (same, expected) in zip(scorer(features), others(features), strict=True):
                assert settings == same
                torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_choice_on_the_reported_images_is_said_wherever_it_is_written(values, tmp_path, capsys):
    sweep(make(values, validation="test", taps=["mid"], timesteps=[50], pools=[1]))
    assert "chosen on test, the images that are reported" in capsys.readouterr().out
    text = (tmp_path / "sweep" / "recommended.yaml").read_text()
    assert text.startswith("# chosen on test")
    assert read_yaml(tmp_path / "sweep" / "recommended.yaml")["extractor"]["taps"] == ["mid"]
    probe = make(values, validation="test").probe("mid", 50, 1)
    assert "chosen on test" in run_probe(probe)["note"]
    assert "chosen on test" in capsys.readouterr().out
    sweep(make(values, taps=["mid"], timesteps=[50], pools=[1], output=str(tmp_path / "held")))
    assert "chosen on" not in capsys.readouterr().out + (tmp_path / "held" / "recommended.yaml").read_text()
