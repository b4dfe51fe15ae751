"""A family of backbones of somebody's own package, from the recipe to predictions."""

import csv
import json
import re
import sys

import pytest
import torch
import yaml
from PIL import Image
from support import rewrite_metadata

from difformer import FeatureExtractor, FeedbackExtractor, LinearHead, create_backbone, load_classifier
from difformer.backbones import check_backbone, outline_backbone
from difformer.checkpoints import CheckpointError
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import DiffusionClassifier, read_description, save_classifier
from difformer.classifier.files import check_same_backbone
from difformer.cli import main
from difformer.config.reading import build
from difformer.engine.config.fitting import with_named_taps
from difformer.engine.config.recipe import Recipe
from difformer.engine.cost.step_memory import step_bytes
from difformer.registry import UntrustedError
from difformer.verbs.train.train import closing_lines

FAMILY = "own_package.nets:Chain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, installed):
    """Weights of the family, others of the same architecture, and a recipe."""
    from own_package.nets import Chain

    folder = tmp_path_factory.mktemp("chain")
    for name, seed in (("chain", 1), ("other", 2)):
        torch.manual_seed(seed)
        Chain(32, name=name).save(folder / f"{name}.safetensors")
    recipe = {
        "output": str(folder / "run"),
        "backbone": {"name": str(folder / "chain.safetensors"), "family": FAMILY},
        "extractor": {"taps": ["link1", "link2"], "timesteps": [60]},
        "head": {"name": "linear"},
        "data": {"name": "own_package.data:halves", "size": 32, "holdout": 0.25},
        "cache": {"folder": str(folder / "features")},
        "training": {"epochs": 2, "batch_size": 8, "workers": 0},
        "evaluation": {"validation": "holdout", "select": "best", "test": "test"},
        "trackers": [],
    }
    recipe["head"] = {"name": "difformer", "arguments": {"width": 16, "heads": 2, "layers": 1, "pool": 2}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The folder of a run with live features."""
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def test_it_is_saved_by_the_name_of_its_family(run):
    described = read_description(run / "classifier.safetensors")
    assert described["backbone"]["family"] == FAMILY
    assert described["metadata"]["recipe"]["backbone"]["family"] == FAMILY
    assert load_classifier(run / "classifier.safetensors", trust="own_package").backbone.taps.keys() == {
        "link0",
        "link1",
        "link2",
    }


def test_its_features_are_cached(run, folder):
    cached = ["--features", "cached", "--cache.dtype", "float32", "--output", str(folder / "cached")]
    assert main(["train", str(folder / "recipe.yaml"), *cached]) == 0
    words = ["--features", "cached", "--cache.dtype", "float32", "--output", str(folder / "measured")]
    assert main(["eval", str(run), "--trust", "own_package", *words]) == 0
    measured = json.loads((folder / "measured" / "metrics.json").read_text())["metrics"]
    assert measured["nll"] == pytest.approx(json.loads((run / "results.json").read_text())["test"]["nll"], rel=1e-5)
    manifest = json.loads(next((folder / "features").glob("*/manifest.json")).read_text())
    assert manifest["identity"]["backbone"]["family"] == FAMILY
    assert main(["extract", str(folder / "recipe.yaml"), "--dry_run"]) == 0


@pytest.mark.parametrize(("size", "maps"), [((32, 48), (8, 12)), (64, 8)])
def test_images_of_another_size_than_its_own_are_cached(folder, tmp_path, size, maps):
    words = ["--data.size", json.dumps(size), "--features", "cached", "--output", str(tmp_path / "run")]
    # Each cell of a map is kept.
    assert main(["train", str(folder / "recipe.yaml"), *words, "--head.arguments.pool", "12"]) == 0
    loaded = load_classifier(tmp_path / "run" / "classifier.safetensors", trust="own_package")
    assert loaded.preprocessing.size == size
    assert next(iter(loaded.extractor.specs.values())).size == maps
    assert main(["eval", str(tmp_path / "run"), "--trust", "own_package"]) == 0


def test_eval_and_predict_open_it(run, folder, tmp_path, not_imported):
    results = json.loads((run / "results.json").read_text())
    assert main(["eval", str(run), "--trust", "own_package"]) == 0
    measured = json.loads((run / "eval-test" / "metrics.json").read_text())["metrics"]
    assert measured["top1"] == results["test"]["top1"]
    (tmp_path / "images").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "images" / "black.png")
    model, backbone = str(run / "classifier.safetensors"), str(folder / "chain.safetensors")
    for number, options in enumerate(([], ["--backbone", backbone])):
        table = tmp_path / f"{number}.csv"
        words = ["predict", model, str(tmp_path / "images"), "--csv", str(table), *options]
        assert main([*words, "--trust", "own_package"]) == 0
        assert next(csv.DictReader(table.open()))["label"] in ("left", "right")


def test_probes_and_dry_runs_read_it(folder, tmp_path, capsys):
    recipe = str(folder / "recipe.yaml")
    options = ["--output", str(tmp_path / "sweep"), "--timesteps", "[60]", "--pools", "[1]"]
    assert main(["sweep", recipe, *options, "--test", "null"]) == 0
    assert {row["tap"] for row in csv.DictReader((tmp_path / "sweep" / "scores.csv").open())} >= {"link0", "link2"}
    assert main(["train", recipe, "--output", str(tmp_path / "run"), "--dry_run", "--fake_data"]) == 0
    assert "2,860 parameters, frozen" in capsys.readouterr().out


def test_what_a_recipe_leaves_out_suits_it(folder, capsys):
    values = json.loads((folder / "recipe.yaml").read_text())
    values |= {"extractor": {}, "data": {"name": "own_package.data:halves", "holdout": 0.25}}
    (folder / "short.yaml").write_text(json.dumps(values))
    with pytest.raises(SystemExit):
        main(["train", str(folder / "short.yaml"), "--print_config"])
    printed = capsys.readouterr().out
    # The timestep of images of this size, of its 500.
    assert "size: 32" in printed
    assert "timesteps:\n  - 25" in printed
    assert "  - link" in printed


def test_a_file_runs_no_code_of_a_family_that_was_not_allowed(run, not_imported, capsys, tmp_path):
    file = run / "classifier.safetensors"
    with pytest.raises(
        UntrustedError, match=r"backbone family own_package\.nets:Chain is code .* \(--trust own_package\)"
    ):
        load_classifier(file)
    with pytest.raises(UntrustedError):
        load_classifier(file, backbone="chain.safetensors", trust="other_package")
    values = json.loads(json.dumps({"data": {"name": "folder"}}))
    # The recipe of a run folder is somebody else's word, as its classifier is.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(values | {"backbone": {"name": "x", "family": FAMILY}}))
    for source in (str(file), str(tmp_path / "run")):
        assert main(["eval", source, "--output", str(tmp_path / "out")]) == 1
        assert "allow it with trust='own_package'" in capsys.readouterr().err
    assert main(["predict", str(file), str(tmp_path), "--csv", str(tmp_path / "out.csv")]) == 1
    assert "allow it with trust='own_package'" in capsys.readouterr().err
    assert not any(name.partition(".")[0] == "own_package" for name in sys.modules)


@pytest.mark.parametrize("name", ["subprocess:Popen", "torch.nn:Linear"])
def test_what_happens_to_be_imported_is_not_trusted(run, tmp_path, name):
    file = tmp_path / "c.safetensors"
    file.write_bytes((run / "classifier.safetensors").read_bytes())
    description = json.loads(read_metadata(file)["description"])
    description["backbone"]["family"] = name
    rewrite_metadata(file, {"description": json.dumps(description)})
    with pytest.raises(UntrustedError, match=f"the backbone family {name} is code"):
        load_classifier(file)
    description["backbone"]["family"] = None
    rewrite_metadata(file, {"description": json.dumps(description)})
    with pytest.raises(CheckpointError, match="malformed: family of backbone must not be NoneType"):
        load_classifier(file)


def test_other_weights_of_the_family_are_refused(run, folder):
    file = run / "classifier.safetensors"
    for other in (
        folder / "other.safetensors",
        create_backbone(folder / "other.safetensors", family=FAMILY),
    ):
        with pytest.raises(CheckpointError, match=r"was trained on the backbone .*chain\.safetensors with digest"):
            load_classifier(file, backbone=other, trust="own_package")
    assert load_classifier(file, backbone=other, verify=False)
    # Weights that are given need no word: they are there.
    assert load_classifier(file, backbone=create_backbone(folder / "chain.safetensors", family=FAMILY))


def test_a_run_is_not_resumed_with_another_family(run, folder, capsys):
    assert main(["train", str(folder / "recipe.yaml"), "--backbone.family", "adm"]) == 1
    assert f"backbone.family was '{FAMILY}' and is now None" in capsys.readouterr().err


def test_a_folder_that_is_resumed_runs_no_code(run, folder, not_imported, capsys):
    values = json.loads((folder / "recipe.yaml").read_text())
    values |= {"backbone": {"name": "adm_elpv"}, "extractor": {"taps": ["mid"]}}
    (folder / "own.yaml").write_text(json.dumps(values))
    assert main(["train", str(folder / "own.yaml")]) == 1
    assert f"backbone.family was '{FAMILY}' and is now None" in capsys.readouterr().err
    assert "own_package.nets" not in sys.modules


def test_a_backbone_in_python(folder, tmp_path):
    backbone = create_backbone(folder / "chain.safetensors", family=FAMILY, dtype=torch.bfloat16)
    extractor = FeatureExtractor(backbone, taps=[2], timesteps=[10])
    assert next(iter(extractor(torch.zeros(1, 3, 32, 32)).values())).shape == (1, 12, 8, 8)
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 2))
    assert classifier.preprocessing.size == 32
    save_classifier(tmp_path / "c.safetensors", classifier)
    assert load_classifier(tmp_path / "c.safetensors", backbone=backbone).class_names == ("0", "1")
    classifier.save_pretrained(tmp_path / "shared")
    assert 'path/of/this/folder", trust="own_package")' in (tmp_path / "shared" / "README.md").read_text()


def test_a_classifier_is_given_away_with_its_backbone(folder, run, tmp_path):
    command = ["export", str(run), "--trust", "own_package", "--output", str(tmp_path / "given")]
    assert main(command) == 0
    given = load_classifier(tmp_path / "given" / "model.safetensors", trust="own_package")
    assert given.backbone.digest == create_backbone(folder / "chain.safetensors", family=FAMILY).digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {}}, "config, schedule, entry and live networks are for the family adm"),
        ({"gradient_checkpointing": True}, "Chain has no gradient_checkpointing to switch"),
        ({"family": "own_package.heads:GeMHead"}, "must have open and build, .* but lacks open and build"),
        ({"family": "own_package.nets:Link"}, r"own_package\.nets has no Link"),
        ({"family": "chain"}, "unknown backbone family 'chain'; did you mean|known are adm"),
        ({"family": "own_package.nets:Twin"}, "must say so in describe"),
    ],
)
def test_what_cannot_be_opened(folder, options, message, monkeypatch):
    from own_package import nets

    twin = type("Twin", (nets.Chain,), {"__module__": nets.__name__})
    monkeypatch.setattr(nets, "Twin", twin, raising=False)
    with pytest.raises(ValueError, match=message):
        create_backbone(folder / "chain.safetensors", **{"family": FAMILY, **options})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"digest": None}, "must give digest as str, got None"),
        ({"digest": ""}, "must give the digest of its weights, the same as its digest, got ''"),
        ({"digest": "other"}, "must give the digest of its weights, the same as its digest, got 'other'"),
        ({"name": 3}, "must give name as str, got 3"),
        ({"config": "small"}, "must give config as dict or null, got 'small'"),
        ({"schedule": 4}, "must give schedule as dict or null, got 4"),
        ({"family": None}, "must give family as str, got None"),
    ],
)
def test_what_it_says_of_itself_is_checked_when_it_is_opened(folder, said, message, monkeypatch):
    from own_package.nets import Chain

    describe = Chain.describe
    monkeypatch.setattr(Chain, "describe", lambda self: describe(self) | said)
    for opened in (create_backbone, outline_backbone):
        with pytest.raises(ValueError, match=re.escape(message)):
            opened(folder / "chain.safetensors", family=FAMILY)


def test_a_family_is_a_class(folder, monkeypatch):
    from own_package import nets

    monkeypatch.setattr(nets, "chains", nets.Chain(32, name="chain"), raising=False)
    with pytest.raises(ValueError, match="must be a class, got an instance of Chain"):
        create_backbone(folder / "chain.safetensors", family="own_package.nets:chains")


@pytest.mark.parametrize("method", ["open", "build"])
def test_what_goes_wrong_in_its_code_is_said_of_it(folder, method, monkeypatch):
    from own_package.nets import Chain

    def fail(name_or_path, **how):
        raise KeyError("size")

    monkeypatch.setattr(Chain, method, fail)
    with pytest.raises(CheckpointError, match=r"family own_package\.nets:Chain cannot open chain: KeyError: 'size'"):
        (create_backbone if method == "open" else outline_backbone)("chain", family=FAMILY)


@pytest.fixture
def wavering(folder):
    from own_package.nets import Wavering

    Wavering(32, name="wavering").save(folder / "wavering.safetensors")
    return str(folder / "wavering.safetensors"), "own_package.nets:Wavering"


def test_it_is_frozen_and_stays_in_evaluation_mode(wavering):
    name, family = wavering
    backbone = create_backbone(name, family=family)
    assert not any(weight.requires_grad for weight in backbone.parameters())
    extractor = FeatureExtractor(backbone.train(), taps=["link2"], timesteps=[10])
    assert not any(module.training for module in backbone.modules())
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 2)).train()
    images = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    first, second = (classifier.extractor(images, [0]) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    fed = FeedbackExtractor(
        create_backbone(name, family=family), feedback_taps=["link2"], taps=["link2"], timesteps=[1]
    )
    assert fed.train().feedback.training
    assert not fed.backbone.training


def test_buffers_that_are_not_saved_are_counted_too(folder, wavering):
    values = json.loads((folder / "recipe.yaml").read_text())
    name, family = wavering
    recipe = build(Recipe, values | {"backbone": {"name": name, "family": family}})
    assert step_bytes(recipe, ("a", "b"), 2, checkpointing=False) > 0


def test_all_that_it_says_is_compared(run, folder):
    backbone = create_backbone(folder / "chain.safetensors", family=FAMILY)
    expected = read_description(run / "classifier.safetensors")["backbone"]
    check_same_backbone(backbone, expected, "c")
    with pytest.raises(CheckpointError, match="with config None"):
        check_same_backbone(backbone, expected | {"config": None}, "c")
    backbone.describe = lambda: expected | {"scale": 2}
    with pytest.raises(CheckpointError, match=r"with scale None, but the one given, .*, has 2"):
        check_same_backbone(backbone, expected, "c")


def test_another_backbone_given_over_a_recipe_is_not_of_its_family(folder, capsys, caplog):
    words = ["train", str(folder / "recipe.yaml"), "--extractor.taps", "mid", "--print_config", "--backbone.name"]
    for given, family in ((["adm_elpv"], None), (["x.safetensors", "--backbone.family", FAMILY], FAMILY)):
        with pytest.raises(SystemExit):
            main([*words, *given])
        assert (f"family: {family}" in capsys.readouterr().out) == (family is not None)
    expected = f"backbone.family {FAMILY} belongs to {folder / 'chain.safetensors'}, so it is left out for adm_elpv"
    assert expected in caplog.text


@pytest.mark.parametrize("part", ["data", "backbone"])
def test_a_run_whose_recipe_lacks_a_section(run, folder, tmp_path, part, capsys):
    values = yaml.safe_load((run / "recipe.yaml").read_text()) | {part: None}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(values))
    assert main(["eval", str(tmp_path / "run"), "--trust", "own_package"]) == 1
    assert f"recipe.yaml: {part} must hold keys and values, got None" in capsys.readouterr().err
    assert with_named_taps(values, family=FAMILY)[part] is None


def test_the_next_steps_name_the_package(run, folder):
    recipe = build(Recipe, json.loads((folder / "recipe.yaml").read_text()))
    lines = closing_lines(recipe, json.loads((run / "results.json").read_text()))
    assert [line.endswith(" --trust own_package") for line in lines[-2:]] == [True, True]


def test_what_is_no_backbone():
    from own_package.nets import Chain

    with pytest.raises(ValueError, match=r"got Linear; it lacks name, digest, dtype, .*forward_taps, describe"):
        check_backbone(torch.nn.Linear(1, 1))
    check_backbone(Chain(8, name="small"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone.compile", "true"], "Chain does not define compile"),
        (["--backbone.family", "chain"], "backbone.family must be one of adm, pixels, or one of your own"),
        (["--backbone.gradient_checkpointing", "true"], "has no gradient_checkpointing"),
    ],
)
def test_wrong_words_in_a_recipe(folder, tmp_path, options, message, capsys):
    assert main(["train", str(folder / "recipe.yaml"), "--output", str(tmp_path / "run"), *options]) == 1
    assert message in capsys.readouterr().err
