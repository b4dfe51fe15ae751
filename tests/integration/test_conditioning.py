"""Class-conditional backbones: one class with all images, or each image's own, from recipes and in Python."""

import csv
import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from support import recipe_input, small_unet, tiny_unet
from training import make_recipe, merged, write_images, write_workplace

from difformer import (
    DiffusionClassifier,
    FeatureExtractor,
    FeedbackExtractor,
    LinearHead,
    create_backbone,
    load_classifier,
    save_classifier,
)
from difformer.backbones import outline_backbone
from difformer.checkpoints import PRESETS, CheckpointError
from difformer.classifier import read_description
from difformer.cli import main
from difformer.engine.config.build import build_classifier, build_extractor
from difformer.engine.config.recipe import ExtractorConfig, ReadingConfig
from difformer.features import CachedFeatures
from difformer.features.conditioning import Conditioning, check_conditioning
from difformer.tasks import Classification

CLASSES = 5
FEEDBACK = {"extractor": {"feedback_taps": ["out01"], "taps": ["out02"], "timesteps": [90]}}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A recipe's values on a class-conditional backbone; images of three classes."""
    folder = tmp_path_factory.mktemp("classes")
    values = write_workplace(folder)
    create_backbone(tiny_unet(num_classes=CLASSES), schedule="linear").save(
        folder / "backbone.safetensors", overwrite=True
    )
    create_backbone(tiny_unet(), schedule="linear").save(folder / "plain.safetensors")
    values = merged(values, {"training": {"epochs": 1}, "cache": {"folder": str(folder / "features")}})
    return folder, values


def given(workplace, name, **changes):
    """A recipe's file, with changes by section."""
    folder, values = workplace
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(merged(values | {"output": str(folder / name)}, changes)))
    return str(path), folder / name


@pytest.fixture(scope="module")
def fixed(workplace):
    """A run in which all images are read as of class 3."""
    recipe, run = given(workplace, "fixed", extractor={"conditioning": {"y": 3}})
    assert main(["train", recipe]) == 0
    return run


@pytest.fixture(scope="module")
def labelled(workplace):
    """A run in which each image is read as of its own class."""
    recipe, run = given(workplace, "labelled", extractor={"conditioning": {"y": "label"}})
    assert main(["train", recipe]) == 0
    return run


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(num_classes=CLASSES), schedule="linear")


EXTRACTORS = {
    "plain": lambda b, **options: FeatureExtractor(b, taps=["in03", "mid"], timesteps=[10, 90], **options),
    "feedback": lambda b, **options: FeedbackExtractor(
        b, feedback_taps=["out01"], taps=["out02"], timesteps=[10, 90], first_pass_taps=["mid"], **options
    ),
}


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_features_are_those_of_an_explicit_keyword(backbone, kind):
    images, labels = recipe_input(1, 3, 3, 32, 32).clamp(-1, 1), torch.tensor([0, 4, 2])
    torch.manual_seed(0)
    bare = EXTRACTORS[kind](backbone).eval()
    expected = bare(images, [1, 2, 3], y=labels)
    told = EXTRACTORS[kind](backbone, conditioning={"y": "label"}).eval()
    told.load_state_dict(bare.state_dict())
    fixed = EXTRACTORS[kind](backbone, conditioning={"y": 4}).eval()
    fixed.load_state_dict(bare.state_dict())
    assert told.arguments == bare.arguments | {"conditioning": {"y": "label"}}
    assert "conditioning" not in bare.arguments
    for found, wanted in (
        (told(images, [1, 2, 3], y=labels), expected),
        (fixed(images, [1, 2, 3]), bare(images, [1, 2, 3], y=torch.full((3,), 4))),
        # What a call says wins.
        (fixed(images, [1, 2, 3], y=labels), expected),
    ):
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(ValueError, match=r"the call must give them: y=labels.*extractor\.conditioning: \{y: 0\}"):
        told(images, [1, 2, 3])
    with pytest.raises(ValueError, match="this network is class-conditional; give y"):
        bare(images, [1, 2, 3])


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_a_classifier_is_saved_with_it(backbone, kind, tmp_path):
    extractor = EXTRACTORS[kind](backbone, conditioning={"y": 2})
    key = next(iter(extractor.specs)) if kind == "plain" else next(key for key in extractor.specs if key.round)
    classifier = DiffusionClassifier(extractor, LinearHead({key: extractor.specs[key]}, 2)).eval()
    save_classifier(tmp_path / "c.safetensors", classifier)
    loaded = load_classifier(tmp_path / "c.safetensors", backbone=backbone)
    assert loaded.extractor.conditioning == Conditioning({"y": 2})
    image = recipe_input(1, 3, 32, 32).clamp(-1, 1)
    assert loaded.predict(image) == classifier.predict(image)
    bare = create_backbone(small_unet(), schedule="linear")
    with pytest.raises(CheckpointError, match="takes no conditioning 'y': it takes none"):
        load_classifier(tmp_path / "c.safetensors", backbone=bare, verify=False)


def test_a_class_number_goes_from_the_recipe_to_predictions(workplace, fixed, tmp_path, capsys):
    folder, _ = workplace
    described = read_description(fixed / "classifier.safetensors")
    assert described["extractor"]["arguments"]["conditioning"] == {"y": 3}
    assert "conditioning:\n    y: 3" in (fixed / "recipe.yaml").read_text()
    assert main(["eval", str(fixed)]) == 0
    measured = json.loads((fixed / "eval-test" / "metrics.json").read_text())["metrics"]
    assert measured["top1"] == json.loads((fixed / "results.json").read_text())["test"]["top1"]
    write_images(tmp_path, {"new": 2})
    options = ["--csv", str(tmp_path / "out.csv"), "--backbone", str(folder / "backbone.safetensors")]
    assert main(["predict", str(fixed / "classifier.safetensors"), str(tmp_path / "new"), *options]) == 0
    assert len(list(csv.DictReader((tmp_path / "out.csv").open()))) == 6
    assert main(["train", str(folder / "fixed.yaml"), "--extractor.conditioning.y", "1"]) == 1
    assert "extractor.conditioning.y was 3 and is now 1" in capsys.readouterr().err


def test_labels_are_read_with_the_images(workplace, labelled, tmp_path, capsys, caplog):
    folder, _ = workplace
    with caplog.at_level(logging.WARNING):
        assert main(["eval", str(labelled)]) == 0
    assert sum("the features are told the answer" in message for message in caplog.messages) == 1
    measured = json.loads((labelled / "eval-test" / "metrics.json").read_text())["metrics"]
    results = json.loads((labelled / "results.json").read_text())["test"]
    assert measured["nll"] == pytest.approx(results["nll"], rel=1e-5)
    write_images(tmp_path, {"new": 1})
    options = ["--csv", str(tmp_path / "out.csv"), "--backbone", str(folder / "backbone.safetensors")]
    model = labelled / "classifier.safetensors"
    assert main(["predict", str(model), str(tmp_path / "new"), *options]) == 1
    assert "train with a fixed class number instead: extractor.conditioning: {y: 0}" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.csv*"))
    classifier = load_classifier(model, backbone=folder / "backbone.safetensors")
    with pytest.raises(ValueError, match="conditioned on each image's label, and the class of these images is not kn"):
        classifier.predict(torch.zeros(3, 16, 16))


@pytest.mark.parametrize("told", [2, "label"])
def test_cached_features_are_those_of_live_training(workplace, told, caplog):
    name = f"cached-{told}"
    recipe, run = given(
        workplace, name, extractor={"conditioning": {"y": told}}, features="cached", cache={"dtype": "float32"}
    )
    with caplog.at_level(logging.WARNING):
        assert main(["extract", recipe]) == 0
    assert sum("the features are told the answer" in message for message in caplog.messages) == (told == "label")
    assert main(["train", recipe]) == 0
    folder, _ = workplace
    manifests = [(path, json.loads(path.read_text())) for path in (folder / "features").glob("*/manifest.json")]
    found = [path for path, manifest in manifests if manifest["identity"].get("conditioning") == {"y": told}]
    assert len(found) == 3
    cached = CachedFeatures(next(path for path in found if "test" in path.parent.name).parent)
    classifier = load_classifier(run / "classifier.safetensors", backbone=folder / "backbone.safetensors")
    by_class = {int(label): cached[place].features for place, label in enumerate(cached.labels)}
    key = next(iter(cached.keys))
    assert len({maps[key].sum().item() for maps in by_class.values()}) == 3
    assert main(["eval", str(run), "--features", "live", "--output", str(folder / f"live-{told}")]) == 0
    live = json.loads((folder / f"live-{told}" / "metrics.json").read_text())["metrics"]
    assert live["nll"] == pytest.approx(json.loads((run / "results.json").read_text())["test"]["nll"], rel=1e-4)
    assert classifier.extractor.conditioning.values == {"y": told}


@pytest.mark.parametrize("told", [1, "label"])
def test_feedback_learns_with_it(workplace, told):
    recipe, run = given(workplace, f"feedback-{told}", **merged(FEEDBACK, {"extractor": {"conditioning": {"y": told}}}))
    assert main(["train", recipe]) == 0
    assert main(["eval", str(run)]) == 0


@pytest.mark.parametrize("told", ["1", "label"])
def test_a_dry_run_counts_and_tries_it(workplace, told, capsys):
    recipe, _ = given(workplace, "dry", **FEEDBACK, backbone={"gradient_checkpointing": "auto"})
    words = ["--extractor.conditioning.y", told, "--dry_run"]
    assert main(["train", recipe, *words]) == 0
    assert "step 2" in capsys.readouterr().out
    assert main(["train", recipe, *words, "--fake_data", "--data.class_names", '["a", "b"]']) == 0


VERBS = {
    "sweep": ["--timesteps", "[90]", "--pools", "[1]", "--taps", '["mid", "out02"]'],
    "select": ["--timesteps", "[90]", "--taps", '["mid", "out02"]', "--pools", "[1]"],
    "look": ["--timesteps", "[90]", "--taps", '["mid"]', "--ks", "[1]", "--projection", "none"],
    "cka": ["--timesteps", "[90]", "--taps", '["mid", "out02"]'],
    "probe": ["--method", "ridge"],
}


@pytest.mark.parametrize("told", ["4", "label"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_so(workplace, verb, told, caplog):
    recipe, output = given(workplace, f"{verb}-{told}")
    words = [verb, recipe, *VERBS[verb], "--output", str(output)]
    with caplog.at_level(logging.WARNING):
        assert main([*words, "--extractor.conditioning.y", told]) == 0
    assert sum("the features are told the answer" in message for message in caplog.messages) == (told == "label")
    if verb in ("sweep", "select"):
        assert f"conditioning:\n    y: {told}" in (output / "recommended.yaml").read_text()


@pytest.mark.parametrize("verb", [*VERBS, "train", "extract"])
def test_it_must_be_said_before_the_first_step(workplace, verb, capsys):
    recipe, output = given(workplace, f"unsaid-{verb}")
    assert main([verb, recipe, *VERBS.get(verb, []), "--output", str(output)]) == 1
    told = capsys.readouterr()
    assert "extractor.conditioning: {y: 0} for one class with all images, or {y: label} for each" in told.err
    assert "images at once" not in told.out
    assert not (output / "state.pt").exists()


@pytest.mark.parametrize("verb", [*VERBS, "train"])
@pytest.mark.parametrize(
    ("backbone", "told", "message"),
    [
        ("plain", {"y": 0}, "takes no conditioning 'y': it takes none; leave extractor.conditioning out"),
        ("backbone", {"y": 5}, r"conditioning y must be a class of .*, in \[0, 5\), got 5"),
        ("backbone", {"z": 1, "y": 1}, "takes no conditioning 'z': it takes y"),
        ("backbone", {"y": "labels"}, "extractor.conditioning must give a class number, or label for each image"),
    ],
)
def test_wrong_conditioning(workplace, verb, backbone, told, message, capsys):
    folder, _ = workplace
    recipe, output = given(
        workplace,
        f"wrong-{verb}",
        backbone={"name": str(folder / f"{backbone}.safetensors")},
        extractor={"conditioning": told},
    )
    assert main([verb, recipe, *VERBS.get(verb, []), "--output", str(output)]) == 1
    assert re.search(message, capsys.readouterr().err)


class Graded(Classification):
    """A classifying task of one's own."""


def test_labels_of_a_task_of_ones_own_must_be_classes_of_the_network(workplace, backbone):
    _, values = workplace
    recipe = make_recipe(values, extractor={"conditioning": {"y": "label"}}, data={"size": 32})
    task = Graded()
    names = tuple("abcdef")
    recipe = replace(recipe, task=replace(recipe.task, name=f"{__name__}:Graded"))
    with pytest.raises(ValueError, match="which has 5, but the data set has 6; give a class number"):
        build_classifier(recipe, backbone, names, task=task)
    assert build_classifier(recipe, backbone, names[:5], task=task)


def test_two_models_are_compared_though_one_has_no_classes(workplace):
    folder, _ = workplace
    recipe, output = given(workplace, "two", extractor={"conditioning": {"y": 1}})
    words = ["cka", recipe, *VERBS["cka"], "--output", str(output)]
    assert main([*words, "--other", str(folder / "plain.safetensors")]) == 0
    turned = ["--backbone.name", str(folder / "plain.safetensors"), "--other", str(folder / "backbone.safetensors")]
    assert main([*words, *turned, "--overwrite"]) == 0


def test_labels_must_be_classes_of_the_network(workplace, capsys):
    folder, _ = workplace
    create_backbone(tiny_unet(num_classes=2), schedule="linear").save(folder / "two.safetensors", overwrite=True)
    recipe, output = given(
        workplace,
        "many",
        backbone={"name": str(folder / "two.safetensors")},
        extractor={"conditioning": {"y": "label"}},
    )
    for verb in ("train", "extract", *VERBS):
        assert main([verb, recipe, *VERBS.get(verb, []), "--output", str(output)]) == 1
        assert "which has 2, but the data set has 3; give a class number" in capsys.readouterr().err


def test_mixed_images_have_no_label(workplace, capsys):
    recipe, _ = given(workplace, "mixed", extractor={"conditioning": {"y": "label"}}, training={"mixup": 0.2})
    assert main(["train", recipe]) == 1
    assert "mix images, which then have no single label" in capsys.readouterr().err


def test_another_class_is_another_start(workplace, fixed, capsys):
    recipe, _ = given(workplace, "began", extractor={"conditioning": {"y": 1}}, init=str(fixed))
    assert main(["train", recipe]) == 1
    assert "extractor.conditioning.y: 3 there, 1 here" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.config.num_classes])
def test_class_conditional_presets(name):
    backbone = outline_backbone(name)
    assert backbone.conditioning == {"y": 1000}
    with pytest.raises(ValueError, match=f"{name} is conditioned on one of 1000 classes, so the recipe must say which"):
        build_extractor(ExtractorConfig(), backbone)
    assert build_extractor(ExtractorConfig(conditioning={"y": 999}), backbone).conditioning.values == {"y": 999}
    with pytest.raises(ValueError, match="has 1000, but the data set has 1001"):
        check_conditioning({"y": "label"}, backbone, 1001)


@pytest.mark.parametrize("value", [3, ["y"], {1: 2}, {"y": 1.5}, {"y": True}, {"y": None}, {"y": "3"}, {"y": "class"}])
@pytest.mark.parametrize("kind", [ExtractorConfig, ReadingConfig, Conditioning])
def test_what_is_no_conditioning(kind, value):
    with pytest.raises(ValueError, match="conditioning must give a class number, or label"):
        kind(value) if kind is Conditioning else kind(conditioning=value)


def test_what_is_left_out_is_not_written_down(workplace):
    recipe, _ = given(workplace, "plain", backbone={"name": str(workplace[0] / "plain.safetensors")})
    assert main(["train", recipe]) == 0
    run = workplace[0] / "plain"
    written = (run / "recipe.yaml").read_text() + json.dumps(read_description(run / "classifier.safetensors"))
    assert "conditioning" not in written
    assert "family" not in written
