"""The package of somebody who uses difformer, as one that is installed."""

import sys
from pathlib import Path

import pytest

from difformer.heads import HEADS


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The package can be imported, as one that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


@pytest.fixture
def not_imported():
    """As in a process that has not seen the package."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "own_package"}
    registered = HEADS._things.pop("own_gem", None)
    yield
    sys.modules.update(kept)
    if registered is not None:
        HEADS._things["own_gem"] = registered
