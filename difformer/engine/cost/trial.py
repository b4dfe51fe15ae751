"""A trial of a run: two steps, their time and their memory."""

import sys
from typing import Any

import psutil
import torch

from difformer.engine.loop.trainer import Clock, Totals, Trainer
from difformer.engine.runtime.stopping import Stopped, StopRequest

STEPS = 2
_CPU_BATCH = 2


def trial_batch(batch_size: int, accelerator: Any) -> int:
    """Images of a trial step, over all processes: on a CPU, a large network needs minutes for a whole batch."""
    return min(batch_size, _CPU_BATCH * accelerator.num_processes) if accelerator.device.type == "cpu" else batch_size


def two_steps(trainer: Trainer, accelerator: Any) -> tuple[list[float], float]:
    """Takes two steps and prints them.

    Returns:
        The losses, and the seconds per image of the last step.

    Raises:
        Stopped: a signal asked to stop.
    """
    clock = Clock()
    losses: list[float] = []
    seconds = 0.0

    def report(totals: Totals) -> None:
        nonlocal seconds
        lap = clock.lap()
        seconds = lap / max(1, totals.counted)
        losses.append(totals.loss_sum / max(1, totals.counted))
        accelerator.print(
            f"step {len(losses)}        {totals.counted} images, loss {losses[-1]:.4f}, {lap:.1f} s", flush=True
        )

    with StopRequest() as stop:
        if not trainer.run_epoch(stop, report, until=STEPS):
            raise Stopped("stopped; a dry run keeps nothing", int(stop.signal_seen() or 15))
    return losses, seconds


def memory_in_use(device: torch.device) -> int:
    """Bytes in use on the GPU; on a CPU, by the process. On a GPU, resets the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Peak bytes in use on the GPU; on a CPU, by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
