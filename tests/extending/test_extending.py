"""Plug-ins of somebody's own package: trained from a recipe, saved, loaded, evaluated and predicted with."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from support import rewrite_metadata, small_unet

from difformer import create_backbone, load_classifier
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import read_description
from difformer.cli import main
from difformer.data import DataConfig, create_dataset
from difformer.registry import Registry, UntrustedError
from difformer.verbs.eval.evaluate import classifier_values
from difformer.verbs.eval.recipe import EvaluationRecipe


@pytest.fixture(scope="module")
def run(tmp_path_factory, installed):
    """The folder of a run with a head, a data set and a criterion of the package."""
    folder = tmp_path_factory.mktemp("own")
    create_backbone(small_unet(), schedule="linear").save(folder / "backbone.safetensors")
    recipe = {
        "output": str(folder / "run"),
        "backbone": {"name": str(folder / "backbone.safetensors")},
        "extractor": {"taps": ["in03", "mid"], "timesteps": [90]},
        "head": {"name": "own_package.heads:GeMHead", "arguments": {"power": 2.0}},
        "data": {"name": "own_package.data:halves", "size": 32, "holdout": 0.25},
        "features": "cached",
        "cache": {"folder": str(folder / "features")},
        "training": {"epochs": 2, "batch_size": 8, "workers": 0},
        "evaluation": {
            "validation": "holdout",
            "select": "best",
            "criterion": "own_package.metrics:largest_logit",
            "test": "test",
        },
        "trackers": [],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def test_a_criterion_chooses_in_its_direction(run):
    name = "own_package.metrics:largest_logit"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    assert results["best"] == min(records, key=lambda record: record[f"validation_{name}"])
    assert results["test"]["extra"].keys() == {name}


SMALLER = "own_package.metrics:largest_logit"


@pytest.fixture
def looking(run, tmp_path):
    """Values that every verb which looks at features takes, with a data set and a criterion of the package."""
    return {
        "output": str(tmp_path / "out"),
        "backbone": {"name": str(run.parent / "backbone.safetensors")},
        "data": {"name": "own_package.data:halves", "size": 32, "holdout": 0.25},
        "criterion": SMALLER,
        "batch_size": 8,
        "workers": 0,
    }


def carry_out(verb, values, **more):
    """Runs a verb in this process; returns its status and the folder of its results."""
    folder = Path(values["output"])
    folder.parent.mkdir(exist_ok=True)
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(json.dumps(values | more))
    return main([verb, str(recipe)]), folder


def test_a_criterion_chooses_the_settings_of_a_probe(looking, capsys):
    status, folder = carry_out("probe", looking, extractor={"taps": ["mid"], "timesteps": [90]}, method="ridge")
    results = json.loads((folder / "results.json").read_text())
    values = [candidate["validation"] for candidate in results["candidates"]]
    assert status == 0
    assert len(set(values)) > 1
    assert results["validation"] == min(values)
    assert results["test"]["extra"].keys() == {SMALLER}
    chosen = next(line for line in capsys.readouterr().out.splitlines() if line.endswith("chosen"))
    assert chosen.split()[:2] == [f"{results['chosen']['l2']:g}", f"{min(values):.4g}"]


def test_a_criterion_chooses_the_features_of_a_sweep(looking, capsys):
    wanted = {"taps": ["in03", "mid", "out01"], "timesteps": [50, 200], "pools": [1, 2], "test": "test"}
    status, folder = carry_out("sweep", looking, **wanted)
    assert status == 0
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    best = min(rows, key=lambda row: float(row[SMALLER]))
    printed, recommended = capsys.readouterr().out, (folder / "recommended.yaml").read_text()
    number = f"{float(best[SMALLER]):.4g}"
    assert f"{best['tap']:<6} t = {best['t']:<4} pool {best['pool']}: {number}, " in printed
    assert f"best single feature: {best['tap']} at t = {best['t']}, pool {best['pool']}: {number}," in recommended
    assert f"by {SMALLER} of 6 images of holdout; the best of 12 is partly luck" in recommended
    assert "%" not in recommended
    measured = json.loads((folder / "best" / "results.json").read_text())
    assert measured["features"] == [{"tap": best["tap"], "t": int(best["t"]), "round": 0}]
    assert measured["validation"] == pytest.approx(float(best[SMALLER]))


def test_a_criterion_chooses_the_features_of_a_search(looking, capsys):
    wanted = {"taps": ["in03", "mid", "out01"], "timesteps": [50, 200], "pools": [1, 2], "fused_timesteps": 2}
    status, folder = carry_out("select", looking, budget=2.0, **wanted)
    assert status == 0
    results = json.loads((folder / "select.json").read_text())
    best = results["best"]
    assert best["score"] == min(found["score"] for found in results["measured"]) > 0
    assert best["interval"] is None
    assert 0 < results["fused"]["score"] <= best["score"]
    assert results["score"] == f"{SMALLER} on holdout"
    printed = capsys.readouterr().out
    assert f"{best['tap']}, t = {best['t']}, pool {best['pool']}: {best['score']:.4g}\n" in printed
    # Few images find the timestep by the same direction.
    _, folder = carry_out(
        "select", looking | {"output": looking["output"] + "-few"}, **(wanted | {"fused_timesteps": 1})
    )
    results = json.loads((folder / "select.json").read_text())
    means = {
        t: sorted(found["score"] for found in results["coarse"] if found["t"] == t)[0]
        for t in {found["t"] for found in results["coarse"]}
    }
    assert results["best"]["t"] == min(means, key=means.get)


@pytest.mark.parametrize(
    ("verb", "more", "message"),
    [
        ("sweep", {"criterion": "loss"}, "loss needs the classes' probabilities, which ridge does not give; choose by "
         "top1, top5, mean_per_class, macro_f1, miou, or take another method: logistic, sgd"),
        ("select", {"criterion": "ece"}, "ece needs the predicted class's probability, which ridge does not give; "),
        ("probe", {"criterion": "own_package.metrics:brier"}, "brier needs the classes' probabilities, which knn does "
         "not give; choose by top1, top5, mean_per_class, macro_f1, ece, miou, or"),
        ("probe", {"criterion": "top5"}, "top5 needs more than 5 classes, got 2"),
        ("select", {"criterion": "top5"}, "top5 needs more than 5 classes, got 2"),
        ("sweep", {"criterion": "own_package.data:halves"}, "must be a difformer.analysis.Metric, got function"),
        ("sweep", {"criterion": "f2"}, "criterion must be one of top1, .*, or one of your own as package.module:Name"),
    ],
)  # fmt: skip
def test_a_criterion_that_cannot_choose_is_refused_before_anything_is_read(
    looking, verb, more, message, monkeypatch, capsys
):
    monkeypatch.setattr("difformer.features.FeatureExtractor.forward", lambda *a, **k: pytest.fail("read"))
    assert carry_out(verb, looking, **more)[0] == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("criterion", ["own_package.metrics:brier", "loss"])
def test_probabilities_choose_where_a_method_gives_them(looking, criterion):
    features = {"taps": ["mid"], "timesteps": [90]}
    status, folder = carry_out("probe", looking, extractor=features, method="logistic", criterion=criterion)
    results = json.loads((folder / "results.json").read_text())
    assert status == 0
    assert results["validation"] == min(candidate["validation"] for candidate in results["candidates"])


def test_a_head_and_a_data_set_go_all_the_way(run, tmp_path, capsys, not_imported):
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["num_images"] == 12
    assert read_description(run / "classifier.safetensors")["head"]["type"] == "own_package.heads:GeMHead"
    name = "own_package.metrics:worst_recall"
    assert main(["eval", str(run), "--trust", "own_package", "--metrics", "ece", name]) == 0
    measured = json.loads((run / "eval-test" / "metrics.json").read_text())["metrics"]
    rows = csv.DictReader((run / "eval-test" / "per_class.csv").open())
    assert measured["extra"] == {name: min(float(row["recall"]) for row in rows)}
    assert f"{name}" in capsys.readouterr().out
    assert measured["top1"] == results["test"]["top1"]
    (tmp_path / "images").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "images" / "black.png")
    options = ["--csv", str(tmp_path / "out.csv"), "--backbone", str(run.parent / "backbone.safetensors")]
    model = str(run / "classifier.safetensors")
    assert main(["predict", model, str(tmp_path / "images"), *options, "--trust", "own_package"]) == 0
    with (tmp_path / "out.csv").open() as file:
        assert next(csv.DictReader(file))["label"] in ("left", "right")


def test_a_file_runs_no_code_that_was_not_allowed(run, not_imported, capsys):
    file, backbone = run / "classifier.safetensors", run.parent / "backbone.safetensors"
    with pytest.raises(
        UntrustedError, match=r"own_package\.heads:GeMHead is code .* trust='own_package' \(--trust own_p"
    ):
        load_classifier(file, backbone=backbone)
    assert "own_package" not in sys.modules
    with pytest.raises(UntrustedError):
        load_classifier(file, backbone=backbone, trust="own_pack")
    assert main(["eval", str(run), "--overwrite"]) == 1
    assert "allow it with trust='own_package'" in capsys.readouterr().err
    assert load_classifier(file, backbone=backbone, trust=["own_package.heads"]).head.power == 2.0
    # What is registered needs no word.
    assert load_classifier(file, backbone=backbone).head.power == 2.0


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", "torch.nn:Linear"])
def test_what_happens_to_be_imported_is_not_trusted(run, tmp_path, name):
    """A file could else run any command: the class it names is called with arguments that it brings."""
    file = tmp_path / "c.safetensors"
    shutil.copy(run / "classifier.safetensors", file)
    description = json.loads(read_metadata(file)["description"])
    description["head"] = {"type": name, "keys": [], "arguments": {"args": ["touch", str(tmp_path / "ran")]}}
    rewrite_metadata(file, {"description": json.dumps(description)})
    with pytest.raises(UntrustedError, match=f"the head {name} is code"):
        load_classifier(file, backbone=run.parent / "backbone.safetensors")
    # Nor is what a trusted module has itself imported.
    description["head"]["type"] = "own_package.heads:torch.nn.Linear"
    rewrite_metadata(file, {"description": json.dumps(description)})
    with pytest.raises(UntrustedError, match="is not of own_package"):
        load_classifier(file, backbone=run.parent / "backbone.safetensors", trust="own_package")
    assert not (tmp_path / "ran").exists()


def test_the_recipe_of_a_run_folder_runs_no_code_either(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(run / "classifier.safetensors", tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text(
        (run / "recipe.yaml").read_text().replace("own_package.data:halves", "antigravity:reader")
    )
    for command in (["eval"], ["compare", str(run), "--output", str(tmp_path / "out")]):
        verb, *words = command
        assert main([verb, str(tmp_path / "run"), *words]) == 1
        assert "the data set antigravity:reader is code" in capsys.readouterr().err
    assert "antigravity" not in sys.modules


def test_a_run_folder_does_not_say_what_is_trusted(run, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run / "classifier.safetensors", folder)
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values |= {"trust": "antigravity", "metrics": ["antigravity:metric"], "output": str(tmp_path / "elsewhere")}
    (folder / "recipe.yaml").write_text(json.dumps(values))
    taken = classifier_values(str(folder), trust="own_package")
    assert taken.keys().isdisjoint({"trust", "metrics", "output"})
    assert main(["eval", str(folder)]) == 1
    assert "allow it with trust='own_package'" in capsys.readouterr().err
    # Nor what a trusted module has itself imported.
    values["data"]["name"] = "own_package.data:np.zeros"
    (folder / "recipe.yaml").write_text(json.dumps(values))
    with pytest.raises(UntrustedError, match="is not of own_package"):
        classifier_values(str(folder), trust="own_package")
    assert "antigravity" not in sys.modules


def test_several_packages_are_trusted_side_by_side(run, tmp_path, capsys, monkeypatch):
    """The head is of one package, and the data set of another."""
    (tmp_path / "other_data.py").write_text(
        "import own_package.data\n\ndef reader(*words):\n    return own_package.data.halves(*words)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("own_package.data:halves", "other_data:reader"))
    command = ["eval", str(tmp_path / "run"), "--overwrite", "--trust"]
    assert main([*command, "own_package"]) == 1
    assert (
        "allow it with trust=['own_package', 'other_data'] (--trust own_package other_data)" in capsys.readouterr().err
    )
    assert "other_data" not in sys.modules
    for words in (["own_package", "other_data"], ["own_package,other_data"], ["[own_package, other_data]"]):
        assert main([*command, *words]) == 0
    (tmp_path / "trust.yaml").write_text("trust: [own_package, other_data]\n")
    # A file cannot allow what the folder that is read before it names.
    assert main([*command[:-1], "--config", str(tmp_path / "trust.yaml")]) == 1
    for words in ([str(tmp_path / "run"), str(run)], [str(run), str(tmp_path / "run")]):
        shutil.rmtree(tmp_path / "run" / "eval-test", ignore_errors=True)
        options = ["--output", str(tmp_path / "page"), "--overwrite", "--trust", "other_data", "own_package"]
        # The images of two readers are those of one split, whose digest does not depend on the reader.
        assert main(["compare", *words, *options]) == 0


@pytest.mark.parametrize(("given", "kept"), [(None, ()), ("one", ("one",)), (["one", "two"], ("one", "two")), ((), ())])
def test_trust_is_one_name_or_several(given, kept):
    assert EvaluationRecipe("run", DataConfig("folder"), trust=given).trust == kept


@pytest.mark.parametrize("given", [3, [3], "", [""], {"a": 1}])
def test_trust_is_nothing_else(given):
    with pytest.raises(ValueError, match="trust must be a name or a list of names, got"):
        EvaluationRecipe("run", DataConfig("folder"), trust=given)


def test_what_could_not_be_saved_is_refused_before_training(run, capsys):
    arguments = ["train", str(run.parent / "recipe.yaml"), "--output", str(run.parent / "other")]
    assert main([*arguments, "--head.name", "torch.nn:Identity", "--head.arguments", "{}"]) == 1
    assert "must be a torch.nn.Module with specs, num_classes, arguments and map_sizes" in capsys.readouterr().err
    arguments = ["eval", str(run), "--trust", "own_package", "--output", str(run.parent / "never")]
    assert main([*arguments, "--metrics", "own_package.heads:GeMHead"]) == 1
    assert "must be a difformer.analysis.Metric, got type" in capsys.readouterr().err


def test_the_registered_name_is_as_good(installed):
    from own_package.heads import GeMHead

    registry = Registry("head")
    registry.register("gem")(GeMHead)
    assert registry.find("gem") is registry.find("own_package.heads:GeMHead") is GeMHead
    with pytest.raises(ValueError, match="there is a head called 'gem' already"):
        registry.register("gem")(torch.nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_package.heads:Gem", "own_package.heads has no Gem"),
        ("own_package.nothing:Gem", "No module named 'own_package.nothing'"),
        (
            "diformer",
            "head.name must be one of .*difformer.*, or one of your own as package.module:Name, got 'diformer'",
        ),
        ("own_package:", "head.name must be one of"),
        ("os; print:x", "head.name must be one of"),
    ],
)
def test_wrong_names_of_heads(run, name, message, capsys):
    arguments = [str(run.parent / "recipe.yaml"), "--head.name", name, "--head.arguments", "{}"]
    assert main(["train", *arguments, "--output", str(run.parent / "other")]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_wrong_data_sets(installed):
    with pytest.raises(ValueError, match=r"own_package\.data has no nothing"):
        create_dataset({"name": "own_package.data:nothing", "size": 32}, "train")
    with pytest.raises(ValueError, match="must give a Source, got NoneType"):
        create_dataset({"name": "builtins:print", "size": 32}, "train")
