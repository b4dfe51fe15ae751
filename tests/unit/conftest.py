"""Fixtures for tests of several subjects."""

import pytest


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    """An empty working folder and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFORMER_CHECKPOINTS", raising=False)
    return tmp_path
