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
    models: list[str] = []
    if device.type == "cuda":
        models = [torch.cuda.get_device_name(device)]
    else:
        # Linux gives the model's name here.
        with contextlib.suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": models[0] if models else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "compiled": compiled,
        "matrix_product_flops": ceiling,
        "date": date.today().isoformat(),
    }
