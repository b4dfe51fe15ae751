"""The package of somebody who uses difformer, as one that is installed."""

import sys
from pathlib import Path

import pytest

from difformer.heads import HEADS
from difformer.tasks import TASKS

# What its modules register when they are imported.
REGISTERED = ((HEADS, "own_gem"), (TASKS, "own_regression"))


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
    registered = [(registry, name, registry._things.pop(name, None)) for registry, name in REGISTERED]
    yield
    sys.modules.update(kept)
    for registry, name, thing in registered:
        if thing is not None:
            registry._things[name] = thing
