"""The files in the repository's `checkpoints/`, against what the manifest and their cards say of them."""

import json
import re
from pathlib import Path

import pytest

from difformer import create_backbone, load_classifier
from difformer.checkpoints import shipped
from difformer.checkpoints.shipped import read_manifest
from difformer.checkpoints.weights import read_metadata
from difformer.files import sha256

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "checkpoints"
LIMITS = {"backbone": 25_000_000, "classifier": 10_000_000}

# The weights that are released. None may be missing, and none may be there besides.
EXPECTED = (
    "adm32_cifar10",
    "adm32_cifar10/difformer",
    "adm32_cifar10/diffeed",
    "adm_elpv",
    "adm_elpv/difformer",
    "adm_elpv/diffeed",
)


def test_what_ships_is_what_is_expected():
    assert sorted(read_manifest(FOLDER)) == sorted(EXPECTED)
    assert shipped().keys() == read_manifest(FOLDER).keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_files_are_those_of_the_manifest(name):
    entry = read_manifest(FOLDER)[name]
    file = FOLDER / entry.file
    assert (file.stat().st_size, sha256(file)) == (entry.bytes, entry.sha256)
    assert entry.bytes <= LIMITS[entry.kind]
    assert f"!checkpoints/{entry.file}" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / entry.source.recipe).is_file()


@pytest.mark.parametrize("name", EXPECTED)
def test_cards_name_data_licence_and_recipe(name):
    entry = read_manifest(FOLDER)[name]
    card = (FOLDER / entry.card).read_text(encoding="utf-8")
    for text in (f"# {name}", entry.source.data, entry.licence, entry.source.recipe):
        assert text in card
    if entry.kind == "backbone":
        assert f"]({name}.png)" in card
        assert (FOLDER / f"{name}.png").is_file()


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_open_under_their_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFORMER_CHECKPOINTS", raising=False)
    entry = read_manifest(FOLDER)[name]
    if entry.kind == "backbone":
        assert create_backbone(name).name == name
    else:
        assert load_classifier(name).backbone.name == entry.backbone


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_do_not_say_where_they_were_made(name):
    metadata = read_metadata(FOLDER / read_manifest(FOLDER)[name].file)
    texts = json.dumps(dict(metadata))
    # Whole paths of any system, and those of a home folder.
    assert re.findall(r"(?<![\w.:/])~?/[\w.-]+/|\b[A-Za-z]:\\\\", texts) == []
