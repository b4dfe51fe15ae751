"""The search for features on a small network."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import run_ranks
from training import merged, write_images, write_subject, write_workplace

from difformer import create_backbone
from difformer.analysis import choose_leave_one_out, ridge_path, share_interval
from difformer.cli import main
from difformer.config.reading import build, plain, read_yaml
from difformer.data import ImageDataset, create_dataset
from difformer.engine.extraction.pooled import SplitFeatures
from difformer.engine.runtime.processes import create_accelerator
from difformer.verbs.select import accuracy, parts
from difformer.verbs.select.parts import Parts
from difformer.verbs.select.recipe import SelectRecipe
from difformer.verbs.select.select import select
from difformer.verbs.sweep.recipe import SweepRecipe
from difformer.verbs.sweep.sweep import sweep

pytestmark = pytest.mark.usefixtures("drawn_once")
TIMESTEPS = [10, 30, 50, 90, 150, 200, 300, 500]


@pytest.fixture
def values(tmp_path):
    return write_subject(tmp_path, "select") | {
        "timesteps": [10, 50, 150, 300, 500],
        "strengths": [0.1, 1.0],
        "batch_size": 8,
    }


def make(values, **changes):
    return build(SelectRecipe, plain(merged(values, changes)))


def test_comes_close_to_the_best_of_a_sweep(values, tmp_path):
    # Noise hides such faint colours at the later timesteps.
    images = write_images(tmp_path / "faint", {"train": 60}, contrast=4)
    grid_of = {
        "taps": ["in03", "mid", "out01"],
        "timesteps": TIMESTEPS,
        "data": {"root": str(images), "holdout": 0.5},
        "batch_size": 64,
    }
    results = select(make(values, **grid_of))
    grid = sweep(build(SweepRecipe, merged(values, grid_of) | {"output": str(tmp_path / "sweep")}))
    accuracies = {(score.tap, score.t, score.pool): score.accuracy for score in grid}
    best = max(accuracies.values())
    # A timestep taken at random would not do.
    assert sum(max(a for (_, t, _), a in accuracies.items() if t == at) < best - 0.005 for at in TIMESTEPS) >= 4
    assert results["best"]["score"] >= best - 0.005
    assert results["cost"] <= 0.25
    for found in results["measured"]:
        of_pools = {pool: accuracies[found["tap"], found["t"], pool] for pool in (1, 2, 4)}
        assert found["score"] == pytest.approx(max(of_pools.values()))
        # Of equal poolings, the one with the shortest vectors.
        assert found["pool"] == min(pool for pool, a in of_pools.items() if a == max(of_pools.values()))


def test_what_it_read_is_what_it_says(values):
    results = select(make(values))
    best = results["best"]
    assert best["score"] == max(found["score"] for found in results["measured"])
    assert len({found["t"] for found in results["measured"]}) == 1
    assert len({found["t"] for found in results["coarse"]}) == 5
    # Of 24 training and 6 validation images: five times four of each class, and once all of them.
    assert results["cost"] == pytest.approx((5 * 12 + 30) / (5 * 30))
    assert results["fused"]["score"] >= best["score"]
    assert results["fused"]["passes"] <= 1.0


def test_several_timesteps_are_fused(values, monkeypatch):
    calls = []

    def note(score, candidates, costs, **limits):
        calls.append((candidates, limits))
        return [("in03", 50), ("mid", 150)]

    monkeypatch.setattr(accuracy, "greedy_set", note)
    results = select(make(values, fused_timesteps=2, budget=2.5, timesteps=[50, 150]))
    ((candidates, limits),) = calls
    assert {t for _, t in candidates} == {50, 150}
    assert limits == {"budget": 2.5, "most": 4}
    taps = create_backbone(values["backbone"]["name"]).taps
    # Both run to the middle.
    assert results["fused"]["passes"] == pytest.approx(2 * taps["mid"].flops / list(taps.values())[-1].flops)


def test_features_come_from_no_more_timesteps_than_asked_for(values, monkeypatch):
    found = {("a", 10): 0.5, ("b", 10): 0.6, ("a", 50): 0.7, ("b", 50): 0.2, ("a", 90): 0.3, ("b", 90): 0.4}
    images = SimpleNamespace(class_names=("one", "other"), labels=np.array([0, 0, 1, 1]))
    offered = []

    def note(score, candidates, costs, **limits):
        offered.append(candidates)
        return [("a", 50)]

    monkeypatch.setattr(accuracy, "greedy_set", note)
    for most in (1, 2):
        recipe = make(values, fused_timesteps=most)
        parts = SimpleNamespace(recipe=recipe, accelerator=create_accelerator("no"), images={"train": images})
        measured = accuracy.Accuracy(parts)
        measured.pools = dict.fromkeys(found, 1)
        assert measured.fuse(found, {"a": 0.5, "b": 0.6})["score"] == 0.7
    assert offered[0] == [("a", 50), ("b", 50)]
    assert offered[1] == [("a", 10), ("b", 10), ("a", 50), ("b", 50)]


def test_leaves_a_recipe_that_training_takes(values, tmp_path, capsys):
    (tmp_path / "select.yaml").write_text(json.dumps(values))
    assert main(["select", str(tmp_path / "select.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "of a sweep's cost" in printed
    folder = tmp_path / "select"
    results = json.loads((folder / "select.json").read_text())
    assert set(results["sources"]) == {"weights", "train", "holdout"}
    best, tried = results["best"], 3 * len(results["measured"])
    low, high = best["interval"]
    assert low < best["score"] <= high
    assert (low, high) == share_interval(best["score"], results["images"])
    assert f"pool {best['pool']}: {best['score']:.2%} ({100 * low:.1f} … {100 * high:.1f})" in printed
    assert f"by top1 of {results['images']} images of holdout, with 95 % intervals; the best of {tried}" in printed
    text, pools = (folder / "recommended.yaml").read_text(), {pair["pool"] for pair in results["fused"]["pairs"]}
    assert read_yaml(folder / "recommended.yaml")["head"]["arguments"]["pool"] == max(pools)
    for pair in results["fused"]["pairs"]:
        assert f"{pair['tap']} at t = {pair['t']} in pool {pair['pool']}" in text
    recommended = read_yaml(folder / "recommended.yaml")["extractor"]
    assert set(recommended["taps"]) == {pair["tap"] for pair in results["fused"]["pairs"]}
    assert set(recommended["timesteps"]) == {pair["t"] for pair in results["fused"]["pairs"]}
    assert main(["select", str(tmp_path / "select.yaml")]) == 1
    (tmp_path / "workplace").mkdir()
    training = write_workplace(tmp_path / "workplace") | {"output": str(tmp_path / "run")}
    (tmp_path / "train.yaml").write_text(json.dumps(training))
    options = ["--config", str(folder / "recommended.yaml"), "--training.epochs", "1"]
    assert main(["train", str(tmp_path / "train.yaml"), *options]) == 0
    trained = read_yaml(tmp_path / "run" / "recipe.yaml")["extractor"]
    assert {key: list(trained[key]) for key in recommended} == recommended
    assert recommended["feedback_taps"] == []


def test_several_processes_find_what_one_does(values, tmp_path):
    alone = select(make(values))
    (tmp_path / "recipe.yaml").write_text(json.dumps(values | {"output": str(tmp_path / "both")}))
    run_ranks(2, "select", tmp_path / "recipe.yaml")
    both = json.loads((tmp_path / "both" / "select.json").read_text())
    for key in ("best", "measured", "coarse", "fused", "cost"):
        assert json.loads(json.dumps(alone[key])) == both[key]


def test_without_labels_it_compares_views(values, monkeypatch):
    monkeypatch.setattr(ImageDataset, "labels", property(lambda images: pytest.fail("looked at the labels")))
    read = []

    def note(self, images, t, *, title, seed):
        read.append((t, len(images), title, seed))
        return vectors(len(images), int(title.removeprefix("view ")))

    def vectors(count, view):
        """Views alike in `mid`, which is narrow, and noise in `in03` and `out01`, which are wide."""
        rng, noise = np.random.default_rng(0), np.random.default_rng(view)
        alike = rng.normal(size=(count, 8)) + 0.1 * noise.normal(size=(count, 8))
        columns = np.concatenate([noise.normal(size=(count, 64)), alike, noise.normal(size=(count, 64))], axis=1)
        places = {("in03", 1): slice(0, 64), ("mid", 1): slice(64, 72), ("out01", 1): slice(72, 136)}
        return SplitFeatures(columns.astype(np.float32), np.zeros(count, np.int64), places)

    monkeypatch.setattr(Parts, "read", note)
    results = select(make(values, labels=False, views=3, taps=["in03", "mid", "out01"]))
    assert "fused" not in results
    assert results["best"]["tap"] == "mid"
    assert results["best"]["score"] > 0.9
    others = [found["score"] for found in results["measured"] if found["tap"] != "mid"]
    assert max(others) < 0.3
    # All 24 images, as they are fewer than it takes, in three views of different noise.
    assert {count for _, count, _, _ in read} == {24}
    assert len({seed for _, _, _, seed in read}) == 3
    assert results["cost"] == pytest.approx(len(read) / 5)


def test_views_of_real_images(values):
    results = select(make(values, labels=False, views=2, pools=[2], taps=["in03", "mid"], timesteps=[50]))
    assert [found["pool"] for found in results["measured"]] == [2, 2]
    assert all(0 <= found["score"] < 1 for found in results["measured"])


@pytest.mark.parametrize("rule", ["k_shot", "percent", "list_file"])
def test_a_part_is_one_of_the_images_that_are_allowed(values, tmp_path, monkeypatch, rule):
    (tmp_path / "list.txt").write_text("".join(f"class{c}/{i}.png\n" for c in range(3) for i in range(10)))
    allowed = {"k_shot": 2, "percent": 50.0, "list_file": str(tmp_path / "list.txt")}
    read = []

    class Read(Exception):
        pass

    def note(model, images, *rest, **options):
        read.extend(images.ids.tolist())
        raise Read

    monkeypatch.setattr(parts, "read_split", note)
    recipe = make(values, data={"holdout": 0.0, rule: allowed[rule]}, validation="test")
    with pytest.raises(Read):
        select(recipe)
    everything = create_dataset(recipe.data, "train").ids.tolist()
    assert set(read) <= set(everything)
    # Four of each class, or all that are allowed.
    assert len(read) == {"k_shot": 6, "percent": 12, "list_file": 12}[rule]


def test_one_image_of_each_class_is_too_few(values):
    with pytest.raises(ValueError, match="no class has two images; give more images, set labels: false"):
        select(make(values, data={"k_shot": 1}))


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
        ({"pools": [2, 2]}, "pools must be one or more different numbers"),
        ({"labels": False, "pools": [1, 2]}, "pools must be a single one without labels"),
        ({"fused_timesteps": 0}, "fused_timesteps"),
        ({"timesteps": [50, 10]}, "timesteps must be one or more in ascending order"),
        ({"timesteps": []}, "timesteps must be one or more in ascending order"),
        ({"validation": "train"}, "train cannot be validation"),
        ({"budget": 0}, "budget must be a number above 0"),
        ({"views": 1}, "views must be a number at least 2"),
    ],
)
def test_wrong_values(values, changes, message):
    with pytest.raises(ValueError, match=message):
        make(values, **changes)


def test_condensed_features_classify_as_whole_ones_do(monkeypatch):
    rng = np.random.default_rng(0)
    labels = torch.arange(300) % 3
    # Forty columns of five directions, and noise.
    hidden = rng.normal(size=(300, 5)) + 2 * np.eye(5)[labels]
    vectors = torch.from_numpy(hidden @ rng.normal(size=(5, 40)) * 3 + 0.1 * rng.normal(size=(300, 40))).float()
    splits = {"train": vectors[:200], "holdout": vectors[200:]}
    cpu = torch.device("cpu")
    monkeypatch.setattr(accuracy, "_COMPONENTS", 8)
    condensed = accuracy.condense(splits, cpu)
    assert {name: tuple(rows.shape) for name, rows in condensed.items()} == {"train": (200, 8), "holdout": (100, 8)}

    def accuracy_of(parts):
        fit = choose_leave_one_out(ridge_path(parts["train"], labels[:200], 3))
        return (fit.model.logits(parts["holdout"]).argmax(1) == labels[200:]).float().mean()

    assert accuracy_of(condensed) >= accuracy_of(splits) - 0.02
    # No component is much larger than another.
    spread = condensed["train"].std(dim=0)
    assert spread.max() < 5 * spread.min()
    few = {name: rows[:, :8] for name, rows in splits.items()}
    assert all(torch.equal(rows, few[name]) for name, rows in accuracy.condense(few, cpu).items())


def test_condensing_fewer_images_than_components_adds_nothing():
    rng = np.random.default_rng(0)
    train = torch.from_numpy(rng.normal(size=(100, 300))).float()
    # A column that does not vary in training.
    train[:, 7] = 3
    condensed = accuracy.condense({"train": train, "holdout": train + 1}, torch.device("cpu"))
    assert condensed["train"].shape[1] == condensed["holdout"].shape[1] <= 99
    assert condensed["holdout"].abs().max() < 100
    centred = (train - train.mean(0)) / train.std(0, unbiased=False).clamp_min(1e-6)
    torch.testing.assert_close(condensed["train"] @ condensed["train"].T, centred @ centred.T, rtol=1e-3, atol=1e-2)


def test_a_choice_on_the_reported_images_is_said(values, tmp_path, capsys):
    results = select(make(values, validation="test", taps=["in03", "mid"], timesteps=[50]))
    assert "chosen on test" in results["note"]
    assert "chosen on test" in capsys.readouterr().out
    assert (tmp_path / "select" / "recommended.yaml").read_text().startswith("# chosen on test")
    assert read_yaml(tmp_path / "select" / "recommended.yaml")["extractor"]["timesteps"] == [50]
