"""What a benchmark ran on."""

import contextlib
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch


def describe_machine(device: torch.device, dtype: torch.dtype, ceiling: float, compiled: bool) -> dict[str, Any]:
    """Device, versions and date; `ceiling` in operations a second, as measured."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "compiled": compiled,
        "matrix_product_flops": ceiling,
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    """The model's name, where Linux says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
