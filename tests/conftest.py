"""How tests that run one after the other, or side by side, stay out of each other's way."""

import gc
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # They share the processor's cores, in the processes they start too. Read when torch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish():
    """What is loaded now stays, so that collecting garbage need not look through all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def unsynced():
    """Nothing is waited for to reach the disk, which only a power cut would show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True, scope="module")
def settled():
    """The same for what a module has loaded."""
    yield
    gc.collect()
    gc.freeze()
