"""Tests that run side by side share the processor's cores, in the processes they start too."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when torch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
