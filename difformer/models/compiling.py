"""Whether torch.compile has what it needs."""

import importlib.util
import os
import shutil
from logging import getLogger

import torch

_log = getLogger(__name__)


def can_compile(device: torch.device) -> bool:
    """Whether networks on a device can be compiled; where not, the log says what is missing."""
    if device.type == "cuda":
        found = importlib.util.find_spec("triton") is not None
        missing = "Triton"
    else:
        found = any(shutil.which(name) for name in (os.environ.get("CXX"), "c++", "g++", "clang++", "cl") if name)
        missing = "a C++ compiler, such as g++"
    if not found:
        _log.warning("the network runs as it is: to compile it, torch needs %s", missing)
    return found
