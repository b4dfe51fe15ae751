"""A classifier that leaves the house together with its backbone."""

import csv
import json
import re
import shutil

import pytest
import torch
import yaml
from training import make_recipe, tiny_unet, write_workplace

from difformer import create_backbone, load_classifier
from difformer.cli import main
from difformer.verbs.export.export import export_classifier
from difformer.verbs.train.train import train

pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained run, its images and its backbone."""
    folder = tmp_path_factory.mktemp("work")
    train(make_recipe(write_workplace(folder), training={"epochs": 1}))
    return folder


def test_an_export_works_where_nothing_else_is(place, tmp_path, monkeypatch, capsys):
    workplace = tmp_path / "work"
    shutil.copytree(place, workplace)
    before = load_classifier(workplace / "run" / "classifier.safetensors", backbone=workplace / "backbone.safetensors")
    # Named by its path, as most backbones of one's own are.
    recipe = workplace / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(place), str(workplace)))
    assert main(["export", str(workplace / "run"), "--output", str(tmp_path / "gift")]) == 0
    shutil.move(tmp_path / "gift", tmp_path / "elsewhere")
    images = tmp_path / "images"
    shutil.copytree(workplace / "images" / "test", images)
    shutil.rmtree(workplace)
    monkeypatch.chdir(tmp_path)
    names = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert names == {"model.safetensors", "backbone.safetensors", "config.json", "README.md"}
    assert "in `backbone.safetensors`, beside" in (tmp_path / "elsewhere" / "README.md").read_text()
    after = load_classifier("elsewhere/model.safetensors")
    for one, other in zip(before.state_dict().values(), after.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert main(["predict", "elsewhere", "images", "--csv", "out.csv"]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == len(list(images.rglob("*.png")))
    assert [row["label"] for row in rows] == [before.predict(images / row["file"])[0].label for row in rows]
    assert "works with nothing else" in capsys.readouterr().out
    # The numbers of the test split, and not those of the last epoch.
    card = yaml.safe_load((tmp_path / "elsewhere" / "README.md").read_text().split("---")[1])
    (result,) = card["model-index"][0]["results"]
    assert result["dataset"]["name"] == "folder"
    assert {"top1", "macro_f1"} <= {metric["name"] for metric in result["metrics"]}
    text = (tmp_path / "elsewhere" / "README.md").read_text()
    assert f"{len(rows)} images of folder:" in text
    assert re.search(r"^\| top-1 \| +[\d.]+% \| .* … .* with 95% confidence \|$", text, re.M)
    assert "3 classes: `class0`, `class1`, `class2`." in text
    assert not {"epoch", "lr", "seconds"} & {metric["name"] for metric in result["metrics"]}
    data = ["--data.name", "folder", "--data.root", "images", "--data.splits.test", ".", "--data.size", "16"]
    assert main(["eval", "elsewhere", *data, "--output", "measured"]) == 0
    measured = json.loads((tmp_path / "measured" / "metrics.json").read_text())["metrics"]
    assert measured["num_images"] == len(rows)


def test_a_backbone_in_half_precision_is_not_written(place, tmp_path):
    backbone = create_backbone(place / "backbone.safetensors", dtype=torch.bfloat16)
    classifier = load_classifier(place / "run" / "classifier.safetensors", backbone=backbone)
    with pytest.raises(
        ValueError, match=r"are not those of its file, as in half precision; open it with dtype=torch\.float32"
    ):
        classifier.save_pretrained(tmp_path / "gift", with_backbone=True)
    assert not (tmp_path / "gift" / "backbone.safetensors").exists()


def test_another_backbone_beside_it_is_not_taken(place, tmp_path):
    folder = export_classifier(str(place / "run"), tmp_path / "gift")
    create_backbone(tiny_unet(seed=8), schedule="linear").save(folder / "backbone.safetensors", overwrite=True)
    with pytest.raises(FileNotFoundError, match="there is no file UNet"):
        load_classifier(folder / "model.safetensors")


def test_what_is_there_is_not_written_over(place, tmp_path, capsys):
    export_classifier(str(place / "run"), tmp_path / "gift")
    command = ["export", str(place / "run"), "--output", str(tmp_path / "gift")]
    assert main(command) == 1
    assert "holds results already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    (tmp_path / "gift" / "notes.txt").write_text("mine")
    assert main([*command, "--overwrite"]) == 1
    assert "holds notes.txt, which is no result" in capsys.readouterr().err
    assert main(["export", "nowhere", "--output", str(tmp_path / "other")]) == 1
    assert "there is no run and no classifier nowhere" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_backbone_that_cannot_be_written_is_said(place, tmp_path):
    backbone = create_backbone(place / "backbone.safetensors")
    classifier = load_classifier(place / "run" / "classifier.safetensors", backbone=backbone)

    class Mute(torch.nn.Module):
        name = "mute"

    classifier.extractor.backbone = Mute()
    with pytest.raises(ValueError, match="Mute has no `save`, so mute cannot lie beside its classifier"):
        classifier.save_pretrained(tmp_path / "gift", with_backbone=True)
    assert not (tmp_path / "gift").exists()


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize(
    "words",
    [
        ["export", "run", "--output", "gift"],
        ["predict", "run", "images/test", "--csv", "out.csv", "--backbone", "backbone.safetensors"],
        ["predict", "run/classifier.safetensors", "images/test/class0/0.png", "--backbone", "backbone.safetensors"],
        ["eval", "run", "--output", "measured"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_run_that_has_not_ended_is_used_with_a_warning(words, finished, place, tmp_path, monkeypatch, caplog):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if not finished:
        (tmp_path / "run" / "results.json").unlink()
    assert main(words) == 0
    assert ("run is not finished; its classifier so far is used" in caplog.text) is not finished
