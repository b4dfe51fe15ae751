"""Processes of their own: several that work together, and some to be killed or sent signals.

They are forked from one that has loaded everything, since loading takes longer than what they do.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# What is loaded once, where nothing computes that forking could hurt.
LOADED = (
    "accelerate", "difformer.cli.verbs", "difformer.engine.extraction.extract", "difformer.verbs.pretrain.pretrain",
    "difformer.verbs.select.select", "difformer.verbs.train.train", "difformer.verbs.transfer.transfer",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "pytest", "timm.optim", "timm.scheduler",
    "torchvision.transforms.v2",
)  # fmt: skip
SECONDS = 180


def start(
    function: Callable[..., None],
    *arguments: Any,
    variables: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> Any:
    """Calls a function in another process, which is returned while it runs.

    Args:
        function, arguments: what to call; the function is one of a module.
        variables: of the environment, beside those that are set here.
        output: a folder for its `stdout` and `stderr`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    environment = {**os.environ, **(variables or {})}
    child = context.Process(target=_enter, args=(os.getcwd(), environment, output, function, arguments))
    child.start()
    return child


def variables_of_ranks(count: int) -> list[dict[str, str]]:
    """The environment that a launcher gives each of several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [place | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def run_command(*words: str) -> None:
    """Runs a script by its path, or else `difformer VERB …`, as if Python had been started in a session of its own."""
    os.setsid()
    if words[0].endswith(".py"):
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.argv = ["difformer", *words]
        runpy.run_module("difformer", run_name="__main__", alter_sys=True)


def run_ranks(count: int, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a script or a verb in several gloo processes on the CPU; without `check` it may fail."""
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(rank)) for rank in range(count)]
        children = []
        for output, variables in zip(outputs, variables_of_ranks(count), strict=True):
            output.mkdir()
            children.append(start(run_command, *words, variables=variables, output=output))
        ended = [joined(child) for child in children]
        out, err = ("".join((output / name).read_text() for output in outputs) for name in ("stdout", "stderr"))
    assert None not in ended, f"still at work after {SECONDS} seconds: {err[-3000:]}"
    assert not check or ended == [0] * count, err[-3000:]
    return subprocess.CompletedProcess(words, next(filter(None, ended), 0), out, err)


def joined(child: Any) -> int | None:
    """The exit status of a process once it has ended; one that takes too long is killed, and has none."""
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
        return None
    return int(child.exitcode)


def launch(processes: int, *command: str | Path) -> None:
    """Runs a script in several gloo processes on the CPU as users do, which loads everything in each."""
    port = variables_of_ranks(1)[0]["MASTER_PORT"]
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    done = subprocess.run([*start, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def wait_for(happened: Callable[[], bool], child: Any) -> None:
    """Waits for something that a process does."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        assert child.exitcode in (None, 0)
        time.sleep(0.001)


def _enter(
    folder: str, environment: dict[str, str], output: Path | None, function: Callable[..., None], arguments: Any
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if output is not None:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    function(*arguments)
