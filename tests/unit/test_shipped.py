"""The weights that ship: their names, the manifest, damaged files. Small stand-ins take their place."""

import json
from pathlib import Path

import pytest
import torch
from example_classifiers import linear
from PIL import Image
from support import recipe_input, small_unet

from difformer import (
    CheckpointError,
    DiffusionClassifier,
    NoiseSchedule,
    UNetBackbone,
    create_backbone,
    load_classifier,
    save_classifier,
)
from difformer.checkpoints import locate, shipped
from difformer.checkpoints.presets import search_folders
from difformer.cli import main
from difformer.engine.runtime.locating import classifier_file
from difformer.files import sha256
from difformer.verbs.eval.evaluate import classifier_values

NAMES = ["small", "small/linear"]


def entry(folder, name, **changes):
    """What the manifest says of a stand-in."""
    file = folder / f"{name}.safetensors"
    kind = "classifier" if "/" in name else "backbone"
    values = {
        "file": f"{name}.safetensors",
        "sha256": sha256(file),
        "bytes": file.stat().st_size,
        "kind": kind,
        "licence": "Apache-2.0",
        "source": {"recipe": "train/pretraining/adm32_cifar10.yaml", "data": "random numbers"},
        "card": f"{name}.md",
    }
    return values | ({"backbone": "small"} if kind == "classifier" else {}) | changes


def write_manifest(folder, entries):
    (folder / "manifest.json").write_text(json.dumps(entries))


@pytest.fixture
def repository(anywhere):
    """The `checkpoints/` of a repository with a backbone and a classifier on it; the working folder is another one."""
    folder = anywhere / "repository" / "checkpoints"
    (folder / "small").mkdir(parents=True)
    backbone = UNetBackbone(small_unet(), NoiseSchedule.linear(), name="small")
    backbone.save(folder / "small.safetensors")
    save_classifier(folder / "small" / "linear.safetensors", linear(backbone), metrics={"top1": 0.5, "images": 9})
    write_manifest(folder, [entry(folder, name) for name in NAMES])
    return folder


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_names_work_from_any_folder(repository, tmp_path, monkeypatch):
    assert list(shipped()) == NAMES
    for place in (tmp_path, repository, repository / "small", repository.parent):
        monkeypatch.chdir(place)
        assert create_backbone("small").name == "small"
        assert create_backbone(Path("small")).name == "small"
        classifier = load_classifier("small/linear")
        assert classifier.backbone.name == "small"
    monkeypatch.chdir(tmp_path)
    images = recipe_input(1, 3, 3, 32, 32).clamp(-1, 1)
    again = DiffusionClassifier.from_pretrained("small/linear")
    assert torch.equal(again(images, [1, 2, 3]), classifier(images, [1, 2, 3]))
    assert classifier_file("small/linear") == repository / "small/linear.safetensors"
    assert classifier_values("small/linear")["backbone"] == {"name": "small"}


def test_files_of_that_very_path_come_first(repository, tmp_path):
    (tmp_path / "small").mkdir()
    # A folder alone is no reason.
    assert locate("small") == repository / "small.safetensors"
    assert locate("small/linear") == repository / "small/linear.safetensors"
    (tmp_path / "small" / "linear").write_bytes(b"own")
    assert locate("small/linear") == Path("small/linear")
    assert locate(tmp_path / "small") == tmp_path / "small"
    with pytest.raises(CheckpointError, match="is a folder"):
        create_backbone("small/")


def test_own_weights_of_the_same_name_come_before_those_that_ship(repository, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    UNetBackbone(small_unet(seed=3), NoiseSchedule.cosine(), name="mine").save("checkpoints/small.safetensors")
    assert create_backbone("small").name == "mine"
    monkeypatch.setenv("DIFFORMER_CHECKPOINTS", str(repository))
    assert create_backbone("small").name == "small"
    assert search_folders() == (repository, Path("checkpoints"), repository, tmp_path / "cache")
    monkeypatch.chdir(repository.parent)
    assert search_folders() == (repository, Path("checkpoints"), tmp_path / "cache")


def test_a_folder_of_save_pretrained_comes_before_a_name(repository, tmp_path):
    own = linear(create_backbone("small"), class_names=["x", "y", "z"])
    own.save_pretrained(tmp_path / "small" / "linear")
    assert DiffusionClassifier.from_pretrained("small/linear").class_names == ("x", "y", "z")
    with pytest.raises(ValueError, match="a folder here, which has no revision"):
        DiffusionClassifier.from_pretrained("small/linear", revision="next")


def test_a_classifier_that_ships_has_no_revision(repository):
    with pytest.raises(ValueError, match="a classifier that ships, which has no revision 'next'"):
        DiffusionClassifier.from_pretrained("small/linear", revision="next")


@pytest.mark.parametrize("name", ["smal", "small/liner", "Small"])
def test_names_that_are_close_are_suggested(repository, name):
    with pytest.raises(
        FileNotFoundError, match=rf"no file {name}.*that ship \(small, small/linear\)\. Did you mean 'sma"
    ):
        locate(name)


@pytest.mark.parametrize("name", ["../small", "./small", "small/../small", "/small", "~/small", "small.safetensors"])
def test_other_paths_are_no_names(repository, name):
    with pytest.raises(FileNotFoundError):
        locate(name)


def test_without_the_repository_the_error_says_where_they_lie(anywhere, capsys):
    for attempt in (lambda: create_backbone("small"), lambda: load_classifier("small/linear")):
        with pytest.raises(FileNotFoundError, match=r"install its wheel, or clone.*DIFFORMER_CHECKPOINTS"):
            attempt()
    assert shipped() == {}
    assert main(["info"]) == 0
    assert "are not in this installation" in capsys.readouterr().out


def test_the_environment_stands_in_for_the_repository(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFORMER_CHECKPOINTS", str(repository.rename(tmp_path / "clone")))
    assert load_classifier("small/linear").backbone.name == "small"


def test_a_file_that_is_gone_can_be_restored(repository):
    (repository / "small.safetensors").unlink()
    for attempt in (lambda: create_backbone("small"), lambda: load_classifier("small/linear")):
        with pytest.raises(
            FileNotFoundError, match=rf"small\.safetensors is missing.*git -C {repository} checkout -- sma"
        ):
            attempt()


def test_a_folder_that_lacks_it_says_to_leave_it_out(repository, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ships with difformer.*leave the folder out"):
        create_backbone("small", folder=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused(repository, name):
    path = repository / f"{name}.safetensors"
    flip(path)
    opening = load_classifier if "/" in name else create_backbone
    for source in (name, path):
        with pytest.raises(CheckpointError, match=rf"is damaged.*git -C {path.parent} checkout -- {path.name}"):
            opening(source)
    assert opening(name, verify=False)


def test_kinds_are_told_apart(repository):
    with pytest.raises(CheckpointError, match=r"difformer\.backbone, not a classifier.*create_backbone"):
        load_classifier("small")
    with pytest.raises(CheckpointError, match=r"difformer\.classifier, not a backbone.*load_classifier"):
        create_backbone("small/linear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": "MIT"}, "unknown key 'license' for ShippedFile; did you mean 'licence'"),
        ({"source": {"recipe": "x", "date": "y"}}, "unknown key 'date' for Training; did you mean 'data'"),
        ({"sha256": "0"}, "64 hexadecimal digits"),
        ({"bytes": -1}, "bytes must be a positive integer"),
        ({"kind": "head"}, "kind must be one of backbone, classifier"),
        ({"kind": "classifier"}, "a classifier names its backbone"),
        ({"backbone": "other"}, "a backbone none"),
        ({"file": "../x.safetensors"}, "must be a path inside"),
        ({"file": "/x.safetensors"}, "must be a path inside"),
        ({"file": "x.pt"}, "ends in .safetensors"),
        ({"card": "x"}, "ends in .md"),
        ({"licence": " "}, "licence must be a text"),
        ({"source": None}, "source must"),
    ],
)
def test_a_malformed_manifest_is_refused(repository, change, message):
    write_manifest(repository, [entry(repository, "small", **change)])
    with pytest.raises(CheckpointError, match=rf"manifest\.json is malformed: .*{message}.*checkout -- manifest"):
        shipped()


def test_a_manifest_is_a_list_of_different_entries(repository):
    for content, message in (
        ({}, "must be a list"),
        ([1], "keys and values"),
        ([entry(repository, "small")] * 2, "twice"),
    ):
        write_manifest(repository, content)
        with pytest.raises(CheckpointError, match=message):
            shipped()
    (repository / "manifest.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"manifest\.json is malformed"):
        shipped()


def test_info_lists_and_describes(repository, capsys):
    assert main(["info"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in lines}
    assert rows["adm256_uncond"][:3] == ["backbone", "not", "here"]
    assert rows["small"][0::4][:2] == ["backbone", "random"]
    assert rows["small/linear"][0] == "classifier"
    assert {"small;", "random"} <= set(rows["small/linear"])
    assert main(["info", "small"]) == 0
    assert "out02" in capsys.readouterr().out
    assert main(["info", "small/linear"]) == 0
    told = capsys.readouterr().out
    for text in (
        "backbone: small",
        "LinearHead",
        "out02",
        "timesteps [90]",
        "classes: 3",
        "top1 0.5",
        "values in 2 ten",
    ):
        assert text in told
    assert main(["info", "small/linear", "--as_json"]) == 0
    assert json.loads(capsys.readouterr().out)["backbone"]["name"] == "small"
    assert main(["info", "small/linear", "--schedule=linear"]) == 1
    assert "are for backbones" in capsys.readouterr().err


def test_predict_takes_a_name(repository, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 36), (50, 0, 90)).save(tmp_path / "images" / "0.png")
    assert main(["predict", "small/linear", "images", "--csv", "out.csv"]) == 0
    assert "1 of 1 images" in capsys.readouterr().out
