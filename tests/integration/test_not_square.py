"""Images that are not square, from the recipe to the predictions on the disk."""

import csv
import json

import pytest
import torch
import yaml
from extraction import parts, plan_of, recipe_for
from PIL import Image
from quickstart import use_quickstart, write_quickstart
from support import small_unet
from training import make_recipe, merged, write_images, write_subject, write_workplace

from difformer import create_backbone, load_classifier
from difformer.classifier import read_description
from difformer.cli import main
from difformer.config.reading import dump, read_yaml
from difformer.data import Preprocessing, collate
from difformer.engine.config.build import build_backbone, build_classifier
from difformer.engine.cost.costs import costs
from difformer.engine.cost.step_memory import step_bytes
from difformer.engine.extraction.extract import open_or_extract
from difformer.features import collate_features
from difformer.models.memory import TensorMemory
from difformer.streams import epoch_seed

pytestmark = pytest.mark.usefixtures("drawn_once")
SIZE = [32, 48]
PUBLISHED = {"name": "difformer", "arguments": {"width": 16, "heads": 2, "layers": 1, "pool": 12}}
DIFFEED = {
    "extractor": {"taps": ["out01"], "timesteps": [90], "feedback_taps": ["out02"]},
    "head": {"name": "attention", "arguments": {"width": 16, "heads": 2, "layers": 1, "pool": 12}},
}
RUNS = {
    "joint": {},
    "published, cached": {"head": PUBLISHED, "features": "cached"},
    "cnn": {"extractor": {"taps": ["mid"], "timesteps": [90]}, "head": {"name": "cnn", "arguments": {"channels": [8]}}},
    "feedback": DIFFEED,
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = merged(write_workplace(tmp_path), {"data": {"size": SIZE}, "training": {"epochs": 1}})
    return merged(values, {"cache": {"folder": str(tmp_path / "features"), "dtype": "float32"}})


def written(tmp_path, values, **changes):
    """A recipe as a file, with the head in place of another's arguments."""
    whole = merged({**values, "head": changes.get("head", values["head"])}, changes)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(make_recipe(whole)))
    return str(path)


@pytest.mark.parametrize("name", RUNS)
def test_from_the_recipe_to_predictions(workplace, tmp_path, name, capsys):
    recipe = written(tmp_path, workplace, **RUNS[name])
    assert "size:\n  - 32\n  - 48\n" in (tmp_path / "recipe.yaml").read_text()
    assert main(["train", recipe, "--dry_run"]) == 0
    assert main(["train", recipe]) == 0
    run = tmp_path / "run"
    classifier = load_classifier(run / "classifier.safetensors", backbone=tmp_path / "backbone.safetensors")
    assert classifier.preprocessing == Preprocessing((32, 48))
    assert classifier.extractor.image_size == (32, 48)
    spec = next(iter(classifier.head.specs.values()))
    assert spec.height * 3 == spec.width * 2
    assert main(["eval", str(run), "--output", str(tmp_path / "measured")]) == 0
    measured = json.loads((tmp_path / "measured" / "metrics.json").read_text())["metrics"]
    trained = json.loads((run / "results.json").read_text())["test"]
    assert measured["top1"] == pytest.approx(trained["top1"])
    assert measured["nll"] == pytest.approx(trained["nll"], rel=1e-4)
    assert main(["train", recipe]) == 0, "the run is recognised"
    assert main(["train", recipe, "--data.size", "48", "32"]) == 1
    assert "data.size" in capsys.readouterr().err
    # And on images of another size.
    options = ["--data.size", "16", "32", "--output", str(tmp_path / "smaller")]
    assert main(["eval", str(run), *options]) == 0
    output = tmp_path / "predicted.csv"
    options = ["--csv", str(output), "--backbone", str(tmp_path / "backbone.safetensors")]
    assert main(["predict", str(run / "classifier.safetensors"), str(tmp_path / "images" / "test"), *options]) == 0
    with output.open() as file:
        assert len(list(csv.DictReader(file))) == 15
    capsys.readouterr()
    assert main(["info", str(run / "classifier.safetensors")]) == 0
    assert "size [32, 48]" in capsys.readouterr().out


def test_what_is_cached_is_what_is_live(workplace, tmp_path):
    backbone = create_backbone(small_unet(), schedule="linear")
    root = write_images(tmp_path / "more", {"train": 3})
    for head in ({"name": "linear"}, {"name": "difformer", "arguments": {"width": 16, "heads": 2, "pool": 8}}):
        extractor = {"taps": ["mid"] if head["name"] == "linear" else ["mid", "out05"]}
        for size in ([32, 48], [40, 16], [64, 96]):
            made = recipe_for(
                root, tmp_path / "cache", head=head, extractor=extractor, data={"size": size},
                cache={"dtype": "float32"},
            )  # fmt: skip
            used = parts(made, backbone)
            cached = open_or_extract(**used)
            batch = collate_features([cached[place] for place in range(len(cached))])
            images = collate([used["dataset"][place] for place in range(len(cached))])
            classifier = used["classifier"]
            classifier.extractor.seed = epoch_seed(made.extractor.seed, 0)
            with torch.no_grad():
                live = classifier.extractor(images.images, images.ids)
                for key, maps in batch.features.items():
                    assert tuple(maps.shape[1:]) == cached.manifest.shapes[key]
                    pooled = torch.nn.functional.adaptive_avg_pool2d(live[key], maps.shape[2:])
                    torch.testing.assert_close(maps, pooled, rtol=1e-5, atol=1e-5)
                expected, found = classifier.head(live), classifier.head(batch.features)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            described = json.loads((cached.folder / "manifest.json").read_text())["identity"]["transform"]
            assert described["size"] == size


def test_maps_are_kept_whole_for_heads_that_may_read_more_cells(tmp_path):
    """Where the head was built for the backbone's own size, and images are larger in one direction."""
    backbone = create_backbone(small_unet(), schedule="linear")
    root = write_images(tmp_path / "more", {"train": 2})
    head = {"name": "difformer", "arguments": {"variant": "joint", "width": 16, "heads": 2, "pool": 12}}
    square = parts(recipe_for(root, tmp_path / "cache", head=head), backbone)
    wide = recipe_for(root, tmp_path / "cache", head=head, data={"size": [32, 48]})
    plan = plan_of({**square, "data": wide.data, "dataset": parts(wide, backbone)["dataset"]})
    assert list(plan.map_sizes.values()) == [None]
    assert list(plan.manifest.shapes.values()) == [(64, 8, 12)]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (["[64]"], "data.size must be an integer of at least 1, or [h, w], two of them, height before width; got [64]"),
        (["[0, 5]"], "data.size must be an integer of at least 1, or"),
        (["64x96"], "height before width; got '64x96'"),
        (["64", "96", "3"], "height before width; got [64, 96, 3]"),
        (["33", "32"], "image sides must be multiples of 2 for this network, got 33×32; choose another size"),
        (["33"], "image sides must be multiples of 2 for this network, got 33×33; choose another size"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "extract"])
def test_sizes_that_make_no_sense_are_refused_before_the_first_step(workplace, tmp_path, verb, size, message, capsys):
    recipe = written(tmp_path, workplace)
    assert main([verb, recipe, "--data.size", *size]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not list(tmp_path.glob("features/*"))


def test_costs_of_a_dry_run_are_of_the_size(workplace, tmp_path, capsys):
    recipe = make_recipe(workplace)
    classifier = build_classifier(recipe, build_backbone(recipe.backbone), ("a", "b", "c"))
    expected = classifier.backbone.taps_at(32, 48)["mid"].flops * 2
    assert costs(classifier, recipe.data.size).flops == costs(classifier).flops == expected
    assert main(["train", written(tmp_path, workplace, features="cached"), "--dry_run", "--fake_data"]) == 0
    printed = capsys.readouterr().out
    assert f"{expected / 1e9:,.1f} GFLOP an image" in printed


@pytest.mark.parametrize("changes", [{}, DIFFEED], ids=["one pass", "feedback"])
def test_memory_of_a_step_is_of_the_size(workplace, changes):
    names = ("a", "b", "c")
    recipe = make_recipe({**workplace, **changes}, data={"size": SIZE})
    upright = make_recipe({**workplace, **changes}, data={"size": SIZE[::-1]})
    small = make_recipe({**workplace, **changes}, data={"size": 32})
    found = [step_bytes(r, names, 2, checkpointing=False) for r in (recipe, upright, small)]
    assert found[0] == pytest.approx(found[1], rel=0.05)
    assert found[0] > 1.2 * found[2]
    classifier = build_classifier(recipe, build_backbone(recipe.backbone), names).train()
    with TensorMemory() as memory:
        classifier(torch.zeros(2, 3, *SIZE), [0, 1]).sum().backward()
    assert found[0] == pytest.approx(memory.peak, rel=0.2)


def test_a_quickstart(tmp_path, monkeypatch):
    write_quickstart(tmp_path)
    pets = use_quickstart(tmp_path, monkeypatch)
    file = tmp_path / "weights" / "folder.yaml"
    values = read_yaml(file)
    values["base"]["data"]["size"] = [16, 24]
    values["heads"] = {name: values["heads"][name] for name in ("attention", "diffeed")}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    output = tmp_path / "found"
    assert main(["quickstart", "--data", str(pets), "--output", str(output), "--seeds", "1"]) == 0
    for method in ("attention-0", "diffeed-0"):
        description = read_description(output / method / "classifier.safetensors")
        assert description["preprocessing"] == {"size": [16, 24], "resize": None}
    example = Image.open(next(output.rglob("example-00.png")))
    assert (example.height, example.width) == (128, 192)


@pytest.mark.parametrize("verb", ["probe", "sweep", "select", "cka", "look"])
def test_verbs_that_look_at_features(tmp_path, verb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {
        "probe": {"extractor": {"taps": ["mid"], "timesteps": [90]}, "method": "ridge"},
        "sweep": {"taps": ["mid", "out03"], "timesteps": [90], "pools": [2], "method": "ridge"},
        "select": {"taps": ["mid", "out03"], "timesteps": [50, 90], "pools": [1], "fused_timesteps": 1},
        "cka": {"taps": ["mid", "out03"], "timesteps": [90], "split": "test", "batch_size": 8},
        "look": {"taps": ["mid", "out03"], "timesteps": [90], "split": "test", "ks": [1], "projection": "none"},
    }[verb]
    subject = write_subject(tmp_path, "found")
    values = merged(subject, own | {"data": {"size": SIZE}})
    if verb in ("cka", "look"):
        values["data"].pop("holdout")
    (tmp_path / "subject.yaml").write_text(json.dumps(values))
    assert main([verb, "subject.yaml"]) == 0
    if verb == "sweep":
        assert main([verb, "subject.yaml"]) == 0, "what is there is recognised"
        with (tmp_path / "found" / "scores.csv").open() as file:
            found = {row["tap"]: float(row["gflop"]) for row in csv.DictReader(file)}
        backbone = create_backbone(tmp_path / "backbone.safetensors")
        expected = {tap: spec.flops / 1e9 for tap, spec in backbone.taps_at(32, 48).items() if tap in found}
        assert found == pytest.approx(expected, rel=1e-3)
