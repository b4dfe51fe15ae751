"""The search for features on a small network."""

import json

import pytest
from training import merged, write_subject

from difformer.cli import main
from difformer.data import create_dataset
from difformer.engine.recipes.reading import build, plain, read_yaml
from difformer.engine.recipes.sweep import SelectRecipe, SweepRecipe
from difformer.engine.selection import select as module
from difformer.engine.selection.select import select
from difformer.engine.sweep.sweep import sweep


@pytest.fixture
def values(tmp_path):
    return write_subject(tmp_path, "select") | {
        "timesteps": [10, 50, 150, 300, 500],
        "strengths": [0.1, 1.0],
        "batch_size": 8,
    }


def make(values, **changes):
    return build(SelectRecipe, plain(merged(values, changes)))


def test_scores_are_those_of_a_sweep_and_cost_less(values, tmp_path):
    results = select(make(values))
    assert results["cost"] < 0.4
    grid = sweep(build(SweepRecipe, {**values, "output": str(tmp_path / "sweep")}))
    accuracies = {(score.tap, score.t, score.pool): score.accuracy for score in grid}
    for found in results["measured"]:
        of_pools = {pool: accuracies[found["tap"], found["t"], pool] for pool in (1, 2, 4)}
        assert found["score"] == pytest.approx(max(of_pools.values()))
        assert of_pools[found["pool"]] == max(of_pools.values())
    assert len({found["t"] for found in results["measured"]}) == 1
    assert len({found["t"] for found in results["coarse"]}) == 5
    best = results["best"]
    assert best["score"] == max(found["score"] for found in results["measured"])
    fused = results["fused"]
    assert fused["score"] >= best["score"]
    assert fused["passes"] <= 1.0


def test_a_larger_budget_fuses_timesteps(values):
    results = select(make(values, budget=2.5))
    assert len({found["t"] for found in results["measured"]}) == 2
    assert results["fused"]["passes"] <= 2.5


def test_leaves_a_recipe_that_training_takes(values, tmp_path, capsys):
    (tmp_path / "select.yaml").write_text(json.dumps(values))
    assert main(["select", str(tmp_path / "select.yaml")]) == 0
    assert "of a sweep's cost" in capsys.readouterr().out
    folder = tmp_path / "select"
    results = json.loads((folder / "select.json").read_text())
    recommended = read_yaml(folder / "recommended.yaml")["extractor"]
    assert set(recommended["taps"]) == {pair["tap"] for pair in results["fused"]["pairs"]}
    assert set(recommended["timesteps"]) == {pair["t"] for pair in results["fused"]["pairs"]}
    assert main(["select", str(tmp_path / "select.yaml")]) == 1


def test_without_labels_it_compares_views(values):
    results = select(make(values, labels=False, views=2, pools=[2], taps=["in03", "mid", "out01"]))
    assert "fused" not in results
    assert 0 <= results["best"]["score"] < 1
    assert results["best"]["tap"] in ("in03", "mid", "out01")


@pytest.mark.parametrize("rule", ["k_shot", "percent", "list_file"])
def test_a_part_is_one_of_the_images_that_are_allowed(values, tmp_path, monkeypatch, rule):
    (tmp_path / "list.txt").write_text("".join(f"class{c}/{i}.png\n" for c in range(3) for i in range(10)))
    allowed = {"k_shot": 1, "percent": 25.0, "list_file": str(tmp_path / "list.txt")}
    read = []

    class Read(Exception):
        pass

    def note(model, images, *rest, **options):
        read.extend(images.ids.tolist())
        raise Read

    monkeypatch.setattr(module, "read_split", note)
    recipe = make(values, data={"holdout": 0.0, rule: allowed[rule]}, validation="test")
    with pytest.raises(Read):
        select(recipe)
    everything = create_dataset(recipe.data, "train").ids.tolist()
    assert set(read) <= set(everything)
    assert len(read) == {"k_shot": 3, "percent": 3, "list_file": 6}[rule]


def test_a_budget_for_which_there_is_nothing_is_not_passed_over(values, tmp_path):
    with pytest.raises(ValueError, match=r"budget: no feature of in03, mid is within 0\.0001 passes .* in03, takes 0"):
        select(make(values, taps=["mid", "in03"], budget=1e-4))
    with pytest.raises(ValueError, match="1000"):
        select(make(values, timesteps=[50, 1000]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "test"}, "unknown key 'test'"),
        ({"pool": 2}, "unknown key 'pool'"),
        ({"pools": [0]}, "pools must be"),
        ({"pools": []}, "pools must be one or more different numbers"),
        ({"labels": False}, "pools must be a single one without labels"),
        ({"timesteps": [50, 10]}, "timesteps must be one or more that ascend"),
        ({"timesteps": []}, "timesteps must be one or more that ascend"),
        ({"validation": "train"}, "train cannot be validation"),
        ({"budget": 0}, "budget must be a number above 0"),
        ({"views": 1}, "views must be a number at least 2"),
    ],
)
def test_wrong_values(values, changes, message):
    with pytest.raises(ValueError, match=message):
        make(values, **changes)
