"""From finished runs to weights that ship: `tools/ship.py`, on small runs of both kinds."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml
from support import rewrite_metadata
from training import make_recipe, merged, write_images

from difformer import create_backbone, load_classifier
from difformer.checkpoints.shipped import read_manifest
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import read_description
from difformer.config.provenance import without_places
from difformer.config.reading import build
from difformer.verbs.pretrain.pretrain import pretrain
from difformer.verbs.pretrain.recipe import PretrainRecipe
from difformer.verbs.train.train import train

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("ship", ROOT / "tools" / "ship.py")
ship = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ship)

TOLD = ["--data", "coloured noise", "--licence", "CC0-1.0"]
OF_BACKBONE = [*TOLD, "--recipe", "train/pretraining/adm32_cifar10.yaml"]
OF_CLASSIFIER = [*TOLD, "--recipe", "train/configs/cifar10.yaml"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run of each kind, of committed code, and a folder that the backbone ships in."""
    work = tmp_path_factory.mktemp("work")
    data = {"name": "folder", "root": str(write_images(work / "images", {"train": 7, "test": 3}, size=32)), "size": 32}
    common = {"training": {"epochs": 2, "batch_size": 8, "workers": 0}, "trackers": [], "data": data}
    model = {
        "image_size": 32, "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1,
        "attention_resolutions": [16], "num_head_channels": 16,
    }  # fmt: skip
    pretraining = {"model": model, "output": str(work / "denoiser"), "samples": {"count": 2, "steps": 2}}
    pretrain(build(PretrainRecipe, common | pretraining))
    commit(work / "denoiser", "0" * 40)
    (work / "ships").mkdir()
    (work / "measured.yaml").write_text("k-NN, top-1: 0.5")
    measured = ["--measured", str(work / "measured.yaml")]
    assert run(work, "backbone", "denoiser", "tiny", *OF_BACKBONE, *measured) == 0
    values = {
        "output": str(work / "head"),
        "backbone": {"name": str(work / "ships" / "tiny.safetensors")},
        "extractor": {"taps": ["mid"], "timesteps": [50]},
        "evaluation": {"test": "test"},
    }
    train(make_recipe(common | values))
    commit(work / "head", "0" * 40)
    return work


def run(work, kind, source, name, *options):
    return ship.main([kind, str(work / source), name, "--folder", str(work / "ships"), *options])


def commit(folder, value):
    """Says of which commit a run was."""
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(environment | {"commit": value}))


@pytest.fixture
def copy(work, tmp_path):
    """The runs and what ships, to change."""
    shutil.copytree(work, tmp_path / "work")
    return tmp_path / "work"


def test_a_card_says_where_training_started(copy):
    values = yaml.safe_load((copy / "head" / "recipe.yaml").read_text())
    train(make_recipe(values, output=str(copy / "next"), init=str(copy / "head"), training={"epochs": 1}))
    commit(copy / "next", "0" * 40)
    assert run(copy, "classifier", "next", "tiny/next", *OF_CLASSIFIER) == 0
    digest = read_metadata(copy / "head" / "classifier.safetensors")["weights_sha256"]
    card = (copy / "ships" / "tiny" / "next.md").read_text()
    assert f"It started from a trained classifier, `head` (weights `{digest[:12]}`)" in card


def test_a_backbone_ships_with_card_and_entry(work):
    folder = work / "ships"
    entry = read_manifest(folder)["tiny"]
    assert (entry.kind, entry.backbone, entry.licence) == ("backbone", None, "CC0-1.0")
    assert entry.bytes == (folder / "tiny.safetensors").stat().st_size
    backbone = create_backbone(folder / "tiny.safetensors")
    assert backbone.name == "tiny"
    assert backbone.digest == create_backbone(work / "denoiser" / "backbone.safetensors").digest
    card = (folder / "tiny.md").read_text()
    for text in ("# tiny", "coloured noise; 21 images", "CC0-1.0", "](../train/pretraining/adm32_cifar10.yaml)"):
        assert text in card
    for text in ("| images seen | 42: 2 epochs, 8 a step |", "commit 000000000000)", "(tiny.png)", "k-NN, top-1 | 0.5"):
        assert text in card
    # What the run did otherwise than the recipe says.
    written = yaml.safe_load((ROOT / OF_BACKBONE[-1]).read_text())["training"]["epochs"]
    assert f"| `training.epochs` | 2 (the recipe: {written}) |" in card
    assert (folder / "tiny.png").read_bytes() == (work / "denoiser" / "samples.png").read_bytes()
    assert sorted(path.name for path in folder.iterdir() if not path.is_dir()) == [
        "manifest.json", "tiny.md", "tiny.png", "tiny.safetensors",
    ]  # fmt: skip


def test_a_classifier_ships_on_it(copy):
    assert run(copy, "classifier", "head", "tiny/linear", *OF_CLASSIFIER) == 0
    folder = copy / "ships"
    entry = read_manifest(folder)["tiny/linear"]
    assert (entry.kind, entry.backbone, entry.card) == ("classifier", "tiny", "tiny/linear.md")
    classifier = load_classifier(folder / "tiny" / "linear.safetensors", backbone=folder / "tiny.safetensors")
    assert classifier.class_names == ("class0", "class1", "class2")
    top1 = json.loads((copy / "head" / "results.json").read_text())["test"]["top1"]
    card = (folder / "tiny" / "linear.md").read_text()
    for text in (
        "](../tiny.md)",
        f"top-1          {top1:6.1%}",
        "(../../train/configs/cifar10.yaml)",
        "| class1 | 3 |",
    ):
        assert text in card


def test_what_ships_says_nothing_of_this_machine(copy):
    """Neither do the files of runs, from which nothing has to be taken."""
    assert run(copy, "classifier", "head", "tiny/linear", *OF_CLASSIFIER) == 0
    files = [*(copy / "ships").rglob("*.safetensors"), *copy.glob("*/backbone.safetensors")]
    texts = [json.dumps(dict(read_metadata(path))) for path in [*files, copy / "head" / "classifier.safetensors"]]
    texts += [path.read_text() for path in (copy / "ships").rglob("*.md")]
    assert len(texts) == 6
    for text in texts:
        assert str(copy.parent) not in text
        assert "pytest" not in text
    recipe = read_description(copy / "head" / "classifier.safetensors")["metadata"]["recipe"]
    assert recipe["backbone"]["name"] == "tiny.safetensors"
    assert "output" not in recipe
    assert "root" not in recipe["data"]
    assert recipe["training"]["epochs"] == 2


def test_runs_of_earlier_versions_lose_their_folders(copy):
    path = copy / "denoiser" / "backbone.safetensors"
    metadata = dict(read_metadata(path))
    provenance = json.loads(metadata["provenance"])
    recipe = json.loads(provenance["recipe"]) | {"output": str(copy)}
    rewrite_metadata(path, {"provenance": json.dumps(provenance | {"recipe": json.dumps(recipe)})})
    assert run(copy, "backbone", "denoiser", "tiny", *OF_BACKBONE) == 0
    assert str(copy) not in json.dumps(dict(read_metadata(copy / "ships" / "tiny.safetensors")))


def unfinished(copy):
    (copy / "denoiser" / "results.json").unlink()


def gone_on(copy):
    with (copy / "denoiser" / "metrics.jsonl").open("a") as file:
        file.write("{}\n")


def with_changes(copy):
    commit(copy / "denoiser", "0" * 40 + "+")


def with_a_path(copy):
    path = copy / "denoiser" / "backbone.safetensors"
    metadata = dict(read_metadata(path))
    provenance = json.loads(metadata["provenance"]) | {"from": "made in /home/somebody/runs"}
    rewrite_metadata(path, {"provenance": json.dumps(provenance)})


def with_a_path_in_the_card(copy):
    (copy / "measured.yaml").write_text("file: /home/somebody/results.json")


def with_a_recipe_of_another_kind(copy):
    (copy / "denoiser" / "recipe.yaml").write_text(yaml.safe_dump({"data": {"name": "folder"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unfinished, "only finished runs ship"),
        (gone_on, "the run was resumed since"),
        (with_changes, "uncommitted changes to the source"),
        (with_a_path, "tiny.safetensors would tell paths of this machine: /home/somebody/runs"),
        (with_a_path_in_the_card, "the card of tiny would tell paths of this machine: /home/somebody/results.json"),
        (with_a_recipe_of_another_kind, "cannot build PretrainRecipe"),
    ],
)
def test_what_may_not_ship_is_refused_and_nothing_changes(copy, change, message, capsys):
    before = {path: path.read_bytes() for path in (copy / "ships").rglob("*") if path.is_file()}
    change(copy)
    measured = ["--measured", str(copy / "measured.yaml")]
    assert run(copy, "backbone", "denoiser", "tiny", *OF_BACKBONE, *measured) == 1
    assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (copy / "ships").rglob("*") if path.is_file()}


def test_uncommitted_changes_may_be_confessed(copy):
    with_changes(copy)
    assert run(copy, "backbone", "denoiser", "tiny", *OF_BACKBONE, "--uncommitted=true") == 0
    assert "with uncommitted changes" in (copy / "ships" / "tiny.md").read_text()


def test_files_over_the_limits_are_halved_or_refused(copy, monkeypatch, capsys):
    size = (copy / "ships" / "tiny.safetensors").stat().st_size
    monkeypatch.setitem(ship.LIMITS, "backbone", size - 1000)
    assert run(copy, "backbone", "denoiser", "tiny", *OF_BACKBONE) == 0
    assert (copy / "ships" / "tiny.safetensors").stat().st_size < 0.6 * size
    assert "| weights | float16, " in (copy / "ships" / "tiny.md").read_text()
    assert create_backbone(copy / "ships" / "tiny.safetensors").config.model_channels == 32
    # The classifier was trained on the weights before they were rounded.
    assert run(copy, "classifier", "head", "tiny/linear", *OF_CLASSIFIER) == 1
    assert "Train it on that one: --backbone.name tiny" in capsys.readouterr().err
    monkeypatch.setitem(ship.LIMITS, "backbone", size // 4)
    assert run(copy, "backbone", "denoiser", "tiny", *OF_BACKBONE) == 1
    assert "at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "source", "name", "message"),
    [
        ("backbone", "denoiser", "tiny/x", "a backbone's name is one word"),
        ("backbone", "denoiser", "../x", "a backbone's name is one word"),
        ("classifier", "head", "linear", "a classifier's name is BACKBONE/NAME"),
        ("classifier", "head", "other/linear", "no backbone other ships yet"),
        ("classifier", "denoiser", "tiny/linear", "unknown key"),
    ],
)
def test_names_and_kinds_are_checked(work, kind, source, name, message, capsys):
    assert run(work, kind, source, name, *(OF_BACKBONE if kind == "backbone" else OF_CLASSIFIER)) == 1
    assert message in capsys.readouterr().err


def test_the_recipe_must_be_in_the_repository(work, capsys):
    assert run(work, "backbone", "denoiser", "tiny", *TOLD, "--recipe", "train/nothing.yaml") == 1
    assert "--recipe must be a file in train/" in capsys.readouterr().err


def test_places_are_taken_out_of_recipes(tmp_path):
    values = {
        "output": "runs/x",
        "data": {"name": "folder", "root": "pets", "list_file": "a.txt", "splits": {"train": "train", "val": "/d/val"}},
        "backbone": {"name": str(tmp_path / "b.safetensors"), "folder": None},
        "cache": {"folder": "features", "views": 2},
        "head": {"arguments": {"pool": 2, "taps": ["mid", "~/x/y"]}},
    }
    stripped = without_places(values)
    assert stripped == {
        "data": {"name": "folder", "splits": {"train": "train", "val": "val"}},
        "backbone": {"name": "b.safetensors"},
        "cache": {"views": 2},
        "head": {"arguments": {"pool": 2, "taps": ["mid", "y"]}},
    }
    assert without_places(stripped) == stripped
    on_the_hub = {"data": {"name": "huggingface", "root": "owner/name"}}
    assert without_places(on_the_hub) == on_the_hub
    assert without_places(merged(on_the_hub, {"data": {"root": str(tmp_path)}})) == {"data": {"name": "huggingface"}}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/tmp/x", True), ("see /data/sets/cifar10", True), ("~/runs", True), (r"C:\Users\me", True),
        ('{"a": ["/srv/x"]}', True), ("owner/name", False), ("https://host/a/b", False), ("hf://owner/name", False),
        ("../train/x.yaml", False), ("1/2 and 3/4", False), ('{"a": "train/x.yaml"}', False),
    ],
)  # fmt: skip
def test_paths_of_a_machine_are_recognised(text, found):
    try:
        ship.check_no_paths({"key": text}, "x")
    except ValueError:
        assert found
    else:
        assert not found
