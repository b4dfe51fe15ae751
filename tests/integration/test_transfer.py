"""The transfer suite on tiny folders of images: what is chosen on what, what is tested, and what the tables say."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import run_ranks
from support import tiny_unet
from training import write_images

from difformer import create_backbone
from difformer.analysis import METRICS
from difformer.cli import main
from difformer.config.reading import create_parser, dump, parse, read_values
from difformer.report.transfer import TransferRow, csv_table, markdown_table
from difformer.verbs.train.train import train
from difformer.verbs.transfer import transfer as module
from difformer.verbs.transfer.suite import Suite, TransferRecipe
from difformer.verbs.transfer.transfer import transfer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """A suite of two data sets and two heads, two learning rates and two seeds: 16 runs."""
    folder = tmp_path_factory.mktemp("work")
    create_backbone(tiny_unet(), schedule="linear").save(folder / "backbone.safetensors")
    write_images(folder / "images" / "red", {"train": 10, "test": 5})
    write_images(folder / "images" / "blue", {"train": 10, "test": 4}, classes=2, seed=1)
    return {
        "root": str(folder / "images"),
        "holdout": 0.3,
        "seeds": [0, 1],
        "candidates": {"optimizer.lr": [1e-9, 0.05]},
        "base": {
            "backbone": {"name": str(folder / "backbone.safetensors")},
            "extractor": {"taps": ["mid"], "timesteps": [90]},
            "data": {"size": 16},
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "training": {"epochs": 2, "batch_size": 8, "workers": 0},
            "trackers": [],
        },
        "heads": {
            "linear": {"head": {"name": "linear", "arguments": {"pool": 2}}},
            "feedback": {"extractor": {"feedback_taps": ["out03"], "taps": ["out02"]}, "head": {"name": "linear"}},
        },
        "datasets": {"red": {"name": "folder", "root": "red"}, "blue": {"name": "folder", "root": "blue"}},
        "metrics": {"blue": "mean_per_class"},
        "published": {"linear": {"red": 48.32}, "SwAV": {"red": 58.18, "blue": 1.5}},
        "source": "a paper",
    }


def make(values, **changes):
    return read_values(create_parser(TransferRecipe, "", "", {}), TransferRecipe, {**values, **changes})


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite") / "suite"
    recipe = make(values, output=str(folder))
    return folder, recipe, transfer(recipe)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_every_run_has_a_folder_and_every_pair_a_row(finished):
    folder, _, result = finished
    runs = {str(path.parent.relative_to(folder)) for path in folder.rglob("recipe.yaml")}
    assert len(runs) == 16
    assert {"red/linear/choice-optimizer.lr=1e-09", "red/linear/choice-optimizer.lr=0.05"} <= runs
    assert [(row.dataset, row.head) for row in result.rows] == [
        ("red", "linear"), ("red", "feedback"), ("blue", "linear"), ("blue", "feedback"),
    ]  # fmt: skip
    assert not result.failures


def test_choices_see_held_out_training_images_and_never_the_test(finished):
    folder, _, _ = finished
    for path in folder.glob("*/*/choice-*"):
        splits = json.loads((path / "splits.json").read_text())
        assert set(splits) == {"train", "holdout"}
        assert not set(splits["train"]["ids"]) & set(splits["holdout"]["ids"])
        assert len(splits["holdout"]["ids"]) == (9 if "red" in str(path) else 6)
        assert "test" not in results_of(path)


def test_the_best_on_held_out_images_is_tested_once_a_seed_after_training_on_all(finished):
    folder, _, result = finished
    for row in result.rows:
        pair = folder / row.dataset / row.head
        scores = {
            path.name.partition("=")[2]: results_of(path)["last"][f"validation_{row.metric}"]
            for path in pair.glob("choice-*")
        }
        best = max(scores.values())
        assert scores[str(row.chosen["optimizer.lr"])] == best
        tested = sorted(pair.glob("test-*"))
        assert [path.name for path in tested] == [
            f"test-seed{seed}-optimizer.lr={row.chosen['optimizer.lr']}" for seed in (0, 1)
        ]
        for path in tested:
            splits = json.loads((path / "splits.json").read_text())
            assert {name: split["images"] for name, split in splits.items()} == (
                {"train": 30, "test": 15} if row.dataset == "red" else {"train": 20, "test": 8}
            )
        assert row.scores["top1"] == [results_of(path)["test"]["top1"] for path in tested]
        assert row.scores["mean_per_class"] == [results_of(path)["test"]["mean_per_class"] for path in tested]


def test_a_suite_without_learning_would_choose_the_first(values):
    recipe = make(values)
    runs = Suite(recipe).choices("red", "linear")
    found = iter([{"last": {"validation_top1": 0.5}}, {"last": {"validation_top1": 0.5}}])
    runner = type("Runner", (), {"accelerator": type("A", (), {"print": staticmethod(lambda *_, **__: None)})})
    runner.__call__ = lambda self, run: next(found)
    assert module._choose(Suite(recipe), runner(), "red", "linear") == runs[0].values


def test_a_seed_changes_what_the_recipe_says(finished, values):
    suite = Suite(finished[1])
    for seed, run in zip((0, 1), suite.finals("red", "linear"), strict=True):
        assert (run.recipe.training.seed, run.recipe.data.seed, run.recipe.extractor.seed) == (seed,) * 3
    assert {run.recipe.training.seed for run in suite.choices("red", "linear")} == {0}
    only = Suite(make(values, seed_keys=["training.seed"])).finals("red", "linear")[1].recipe
    assert (only.training.seed, only.data.seed) == (1, 0)


def test_the_tables_hold_mean_and_deviation_beside_the_published(finished):
    folder, _, result = finished
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [row["metric"] for row in rows] == ["top1", "top1", "mean_per_class", "mean_per_class"]
    assert [row["published_top1"] for row in rows] == ["48.32", "", "", ""]
    first = [100 * score for score in result.rows[0].scores["top1"]]
    assert float(rows[0]["mean"]) == pytest.approx(sum(first) / 2, abs=1e-3)
    assert float(rows[0]["std"]) == pytest.approx(abs(first[0] - first[1]) / 2**0.5, abs=1e-3)
    assert {row["seeds"] for row in rows} == {"2"}
    table = (folder / "table.md").read_text()
    assert "| linear, published | 48.32 | - |" in table
    assert "| SwAV | 58.18 | 1.5 |" in table
    assert "Published, all top-1: a paper" in table
    assert f"| linear | {sum(first) / 2:.2f} ± " in table
    assert "## Mean per class\n\n| head | blue |" in table
    assert "30% of the training images, held out" in table
    assert "Failed" not in table
    assert parse(create_parser(TransferRecipe, "", "", {}), TransferRecipe, (), [str(folder / "transfer.yaml")])[0]


def test_the_same_command_trains_nothing_again_and_leaves_the_global_generator_alone(finished, capsys):
    folder, recipe, result = finished
    state = torch.random.get_rng_state()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("state.pt")}
    table = (folder / "table.md").read_text()
    again = transfer(recipe)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("state.pt")} == before
    assert again.rows == result.rows
    assert (folder / "table.md").read_text() == table
    assert "[16/16] blue/feedback/test-seed1" in capsys.readouterr().out
    assert torch.random.get_rng_state().equal(state)


def small(values, folder, **changes):
    """One data set and one head."""
    pair = {"datasets": {"red": values["datasets"]["red"]}, "heads": {"linear": values["heads"]["linear"]}}
    return make(values, output=str(folder), **{"metrics": {}, **pair, **changes})


def test_an_interrupted_suite_goes_on_to_the_same_result(finished, values, tmp_path, monkeypatch):
    recipe = small(values, tmp_path / "suite")
    runs = []

    def interrupted(run, **options):
        runs.append(run)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return train(run, **options)

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer(recipe)
    monkeypatch.undo()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "suite").rglob("state.pt")}
    assert len(done) == 2
    assert transfer(recipe).rows == finished[2].rows[:1]
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_a_run_that_fails_is_reported_and_the_others_go_on(finished, values, tmp_path, monkeypatch, capsys):
    recipe = small(values, tmp_path / "suite", datasets=values["datasets"], metrics=values["metrics"])

    def failing(run, **options):
        if "red" in run.output and run.training.seed == 1:
            raise OSError("the disk is full")
        # The others are those of the whole suite.
        shutil.copytree(finished[0] / Path(run.output).relative_to(recipe.output), run.output)
        return train(run, **options)

    monkeypatch.setattr(module, "train", failing)
    (tmp_path / "suite.yaml").write_text(dump(recipe))
    assert main(["transfer", str(tmp_path / "suite.yaml")]) == 1
    shown = capsys.readouterr()
    assert "difformer: failed: red/linear/test-seed1-optimizer.lr=" in shown.err
    assert "OSError: the disk is full" in shown.err
    table = (tmp_path / "suite" / "table.md").read_text()
    assert "(1 of 2 seeds)" in table
    assert "| red | linear | optimizer.lr" in table
    assert "## Failed\n\n- red/linear/test-seed1" in table
    monkeypatch.undo()
    assert main(["transfer", str(tmp_path / "suite.yaml")]) == 0
    assert "Failed" not in (tmp_path / "suite" / "table.md").read_text()
    assert results_of(tmp_path / "suite")["rows"][0]["scores"] == results_of(finished[0])["rows"][0]["scores"]


def test_nothing_is_tested_while_a_candidate_is_missing(values, tmp_path, monkeypatch):
    recipe = small(values, tmp_path / "suite")

    def failing(run, **options):
        if run.optimizer.lr == 0.05:
            raise RuntimeError("out of memory")
        return train(run, **options)

    monkeypatch.setattr(module, "train", failing)
    result = transfer(recipe)
    assert list(result.failures) == ["red/linear/choice-optimizer.lr=0.05", "red/linear"]
    assert "not tested: 1 of 2 candidates failed" in result.failures["red/linear"]
    assert result.rows[0].chosen is None
    assert not list((tmp_path / "suite").rglob("test-*"))


def test_a_candidate_that_diverges_is_not_chosen(values, tmp_path):
    recipe = small(values, tmp_path / "suite", candidates={"optimizer.lr": [1e38, 1e-9]}, seeds=[0])
    result = transfer(recipe)
    assert result.rows[0].chosen == {"optimizer.lr": 1e-9}
    assert not result.failures
    worse = small(values, tmp_path / "worse", candidates={"optimizer.lr": [1e38, 2e38]}, seeds=[0])
    assert "not finite" in transfer(worse).failures["red/linear"]
    alone = small(values, tmp_path / "alone", candidates={"optimizer.lr": [1e38]}, seeds=[0])
    assert "the loss is" in transfer(alone).failures["red/linear/test-seed0-optimizer.lr=1e+38"]


def test_without_a_choice_seeds_alone_are_run(values, tmp_path):
    recipe = small(values, tmp_path / "suite", candidates={}, seeds=[3])
    result = transfer(recipe)
    assert [path.name for path in (tmp_path / "suite" / "red" / "linear").iterdir()] == ["test-seed3"]
    assert result.rows[0].chosen == {}
    assert result.rows[0].spread("top1")[1] is None
    assert "nothing to choose" in (tmp_path / "suite" / "table.md").read_text()


def test_two_processes_come_to_the_same(finished, values, tmp_path):
    recipe = small(values, tmp_path / "suite")
    (tmp_path / "suite.yaml").write_text(dump(recipe))
    run_ranks(2, "transfer", tmp_path / "suite.yaml")
    ours, theirs = (results_of(folder)["rows"][0] for folder in (tmp_path / "suite", finished[0]))
    assert ours["chosen"] == theirs["chosen"]
    assert ours["scores"]["top1"] == pytest.approx(theirs["scores"]["top1"], abs=0.07)


def test_a_dry_run_lists_the_runs_and_writes_nothing(values, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.yaml").write_text(dump(make(values, output="suite")))
    assert main(["transfer", "suite.yaml", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    for name, images in (
        ("red/linear/choice-optimizer.lr=0.05", 21),
        ("blue/feedback/test-seed1-optimizer.lr=1e-09", 20),
    ):
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert f"2 epochs × {images} images" in line
        assert line.endswith("GFLOP")
    assert "16 runs, " in shown
    # Each head takes its two steps.
    assert shown.count("step 2") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["suite.yaml"]
    assert main(["transfer", "suite.yaml", "--fake_data"]) == 1


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # As its comment says for fewer data sets.
        (["--datasets", "{cub: {name: cub, root: cub}}", "--metrics", "{}"], 24),
        pytest.param([], 144, marks=pytest.mark.slow),
    ],
)
def test_the_suite_that_ships_is_listed_without_weights_and_data(tmp_path, monkeypatch, capsys, options, count):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("difformer.verbs.transfer.trial.try_out", lambda *_, **__: None)
    suite = str(ROOT / "eval" / "configs" / "transfer.yaml")
    assert main(["transfer", suite, *options, "--dry_run", "--fake_data"]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("cub/linear/test-seed0"))
    assert "28 epochs × 5,994 images, 819,400 parameters" in line
    # 28 passes over the training images and one over the test images, at 639.3 GFLOP.
    assert line.endswith(f"{(28 * 5994 + 5794) * 639.288e9 / 1e15:.3g} PFLOP")
    assert f"{count} runs, " in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"linear": {"heat": {}}}}, r"unknown key 'heads\.linear\.heat'; did you mean 'heads\.linear\.head'"),
        ({"base": {"optimizer": {"rate": 1}}}, r"unknown key 'base\.optimizer\.rate'"),
        ({"datasets": {"red": {"nam": "folder"}}}, r"unknown key 'datasets\.red\.nam'; did you mean"),
        ({"candidates": {"optimizer.rl": [1]}}, r"unknown key 'candidates\.optimizer\.rl'"),
        ({"candidates": {"optimizer.lr": 1}}, r"candidates\.optimizer\.lr must be a list"),
        ({"candidates": {"optimizer.lr": []}}, r"candidates\.optimizer\.lr must be a list"),
        ({"candidates": {"training.seed": [1, 2]}}, r"candidates\.training\.seed is set by the suite itself"),
        ({"base": {"seeds": [0, 1]}}, r"base\.seeds is set by the suite itself"),
        ({"base": {"evaluation": {"test": "val"}}}, r"base\.evaluation\.test is set by the suite itself"),
        ({"seeds": []}, "seeds must be at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seed_keys": ["training.sed"]}, "unknown key 'training.sed'"),
        ({"holdout": 0}, "holdout must lie between 0 and 1"),
        ({"metrics": {"red": "top5"}}, "metrics must give one of"),
        ({"metrics": {"green": "top1"}}, "metrics must give one of"),
        ({"datasets": {"../red": {"name": "folder"}}}, "names that folders can have"),
        ({"heads": {}}, "heads must name at least one"),
        ({"heads": {"linear": 3}}, "linear must hold keys and values"),
    ],
)  # fmt: skip
def test_mistakes_are_named(values, changes, message):
    with pytest.raises(ValueError, match=message):
        make(values, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"training": {"epochs": "many"}}}, r"red/linear/test-seed0.*epochs"),
        ({"candidates": {"optimizer.lr": [0.1, -1]}}, r"optimizer\.lr must be a number above 0"),
        ({"heads": {"a": {}, "b": {"training": {"precision": "bf16"}}}}, "precision must be the same"),
        ({"candidates": {"extractor.taps": [["mid"], ["/mid"]]}}, "named by them"),
    ],
)
def test_mistakes_show_before_the_first_run(values, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        transfer(make(values, output=str(tmp_path / "suite"), **changes))
    assert not (tmp_path / "suite").exists()


def test_a_folder_that_is_no_suite_is_left_alone(values, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(FileExistsError, match="holds something that is no run"):
        transfer(make(values, output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_numbers_are_rounded_and_missing_ones_shown():
    rows = [
        TransferRow("a", "x", "top1", {}, {"top1": [0.5, 0.6, 0.7], "mean_per_class": [0.1, 0.1, 0.1]}, 3),
        TransferRow("a", "y|z", "top1", None, planned=3),
        TransferRow("b", "x", "top1", {"optimizer.lr": 0.1}, {"top1": [0.98765], "mean_per_class": [0.5]}, 3),
        TransferRow("b", "y|z", "top1", planned=3),
    ]
    metrics = {name: METRICS.find(name) for name in ("top1", "mean_per_class")}
    table = markdown_table(rows, {}, metrics)
    assert "| x | 60.00 ± 10.00 | 98.77 (1 of 3 seeds) |" in table
    assert "| y\\|z | - | - |" in table
    assert "Mean per class" not in table
    lines = list(csv.DictReader(csv_table(rows, {"x": {"a": 61.0}}, metrics).splitlines()))
    assert (lines[0]["mean"], lines[0]["std"], lines[0]["published_top1"]) == ("60.0000", "10.0000", "61.0")
    assert (lines[1]["mean"], lines[1]["chosen"], lines[1]["seeds"]) == ("", "", "0")
    assert json.loads(lines[2]["chosen"]) == {"optimizer.lr": 0.1}
