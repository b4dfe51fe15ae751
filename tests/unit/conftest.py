"""Fixtures for tests of several subjects."""

import importlib

import matplotlib.figure
import pytest

# The package has a function of that name too.
_SHIPPED = importlib.import_module("difformer.checkpoints.shipped")


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    """An empty working folder, an empty cache, and no repository beside the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_SHIPPED, "_FOLDERS", (tmp_path / "repository" / "checkpoints",))
    monkeypatch.delenv("DIFFORMER_CHECKPOINTS", raising=False)
    return tmp_path


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = matplotlib.figure.Figure.savefig

    def record(figure, *arguments, **options):
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", record)
    return saved
