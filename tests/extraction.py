"""Extraction in processes of its own, to be joined by others or killed."""

import multiprocessing
import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import Any

from support import small_unet

from difformer import create_backbone
from difformer.engine.build import build_classifier, build_dataset
from difformer.engine.extract import extract_features
from difformer.engine.reading import build
from difformer.engine.recipe import Recipe


def recipe_for(root: Path, folder: Path, **changes: Any) -> Recipe:
    """A recipe of a linear probe with cached features; parts that are given are merged."""
    values: dict[str, Any] = {
        "data": {"name": "folder", "root": str(root), "size": 32},
        "extractor": {"taps": ["mid"], "timesteps": [90]},
        "head": {"name": "linear"},
        "features": "cached",
        "cache": {"folder": str(folder), "shard_size": 4},
        "training": {"workers": 0},
    }
    for name, value in changes.items():
        merged = name in ("data", "extractor", "cache", "training")
        values[name] = {**values[name], **value} if merged else value
    return build(Recipe, values)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run_in_child(
    root: Path,
    folder: Path,
    *,
    rank: int = 0,
    world: int = 1,
    shard_size: int = 4,
    message: str | None = None,
    kill_after: float | None = -1,
) -> Any:
    """Extracts two views of the training split in another process.

    Args:
        root, folder, shard_size: of data set and cache.
        rank, world: one of several processes; the process is returned while it runs.
        message: of the error that is expected.
        kill_after: seconds after its beginning when it is killed; None lets it end and returns how long it took.
    """
    context = multiprocessing.get_context("forkserver")
    # What is imported once, where nothing computes that forking could hurt, need not be imported by each.
    context.set_forkserver_preload(["difformer.engine.extract", "accelerate", "torchvision.transforms.v2"])
    started, child_end = context.Pipe(duplex=False)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": _port(folder), "ACCELERATE_USE_CPU": "true"}
    child = context.Process(
        target=_child, args=(root, folder, shard_size, message, environment if world > 1 else {}, child_end)
    )
    child.start()
    if world > 1:
        return child
    assert started.poll(120)
    start = time.perf_counter()
    if kill_after is None:
        child.join()
        assert child.exitcode == 0
        return time.perf_counter() - start
    time.sleep(kill_after)
    child.kill()
    child.join()
    return None


def _child(
    root: Path, folder: Path, shard_size: int, message: str | None, environment: dict[str, Any], started: Any
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    recipe = recipe_for(root, folder, cache={"folder": str(folder), "views": 2, "shard_size": shard_size})
    recipe = recipe if message is None else recipe_for(root, folder, data={"check_images": "none"})
    dataset = build_dataset(recipe.data, "train", augment=True)
    backbone = create_backbone(small_unet(), schedule="linear")
    classifier = build_classifier(recipe, backbone, dataset.class_names).eval()
    if not environment:
        started.send("started")
    try:
        extract_features(recipe, classifier, dataset, "train", augment=True)
    except ValueError as error:
        if message is None or message not in str(error):
            raise
    else:
        assert message is None, "an error was expected"


@cache
def _port(folder: Path) -> int:
    """A free port, the same for all processes of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
