"""Keeping freed memory."""

import ctypes
import subprocess
import sys

import pytest

try:
    GLIBC = hasattr(ctypes.CDLL(None), "mallopt")
except (OSError, TypeError):
    GLIBC = False

FAULTS = """
import resource, sys, torch
from difformer.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16 * 1024**2)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
default = faults()
assert keep_freed_memory()
faults()
kept = faults()
assert keep_freed_memory(False)
print(default, kept, faults())
"""


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_kept_memory_is_not_cleared_by_the_system_again():
    """Counted in pages the system has to provide: 8 tensors of 16,384 pages of 4 KiB, or fewer and larger pages."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    default, kept, given_back = map(int, run.stdout.split())
    assert 8 * kept < default
    assert 8 * kept < given_back


def test_without_glibc_nothing_happens(monkeypatch):
    from difformer import allocator

    def missing(name):
        raise OSError("no such library")

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    assert not allocator.keep_freed_memory()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
