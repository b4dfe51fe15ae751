"""Fixtures for tests of several verbs."""

from pathlib import Path

import matplotlib.figure
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def drawn_once():
    """Each picture of a name is drawn once a module; further ones are an empty PNG, since drawing takes longer than the
    runs do."""
    save, drawn = matplotlib.figure.Figure.savefig, set()

    def once(figure, path, **options):
        # Written under a temporary name, `.curves.png.….tmp`.
        name = Path(path).name.split(".")[1]
        if name in drawn:
            Image.new("RGB", (8, 8)).save(path, "png")
        else:
            drawn.add(name)
            save(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", once)
        yield
