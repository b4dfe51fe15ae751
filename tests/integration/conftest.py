"""Fixtures for tests of several verbs."""

import shutil
from pathlib import Path

import matplotlib.figure
import pytest
from PIL import Image
from quickstart import use_quickstart, write_quickstart


@pytest.fixture(scope="module")
def drawn_once():
    """Each picture of a name is drawn once a module; further ones are an empty PNG, since drawing takes longer than the
    runs do."""
    save, drawn = matplotlib.figure.Figure.savefig, set()

    def once(figure, path, **options):
        # Written under a temporary name, `.curves.png.….tmp`.
        name = tuple(Path(path).name.split(".")[1:3])
        if name in drawn and name[1] == "pdf":
            Path(path).write_bytes(b"%PDF-1.4\n")
        elif name in drawn:
            Image.new("RGB", (8, 8)).save(path, "png")
        else:
            drawn.add(name)
            save(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", once)
        yield


@pytest.fixture(scope="module")
def quickstart_place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_quickstart(folder)
    return folder


@pytest.fixture
def pets(quickstart_place, tmp_path, monkeypatch):
    """A folder of images, whose quickstart takes seconds; the working folder is empty."""
    for name in ("weights", "pets"):
        shutil.copytree(quickstart_place / name, tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return use_quickstart(tmp_path, monkeypatch)
