"""Extraction in processes of its own, to be joined by others or killed."""

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from processes import start, wait_for
from support import tiny_unet

from difformer import Backbone, create_backbone
from difformer.config.reading import build
from difformer.engine.config.build import build_classifier, build_dataset
from difformer.engine.config.recipe import Recipe
from difformer.engine.extraction.extract import BATCH_SIZE, Job, announce, extract_missing, open_or_extract, plan_for
from difformer.engine.runtime.processes import on_main
from difformer.features import CachedFeatures
from difformer.features.planning import CachePlan


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


def parts(recipe: Recipe, backbone: Backbone, split: str = "train") -> dict[str, Any]:
    """The arguments of an extraction."""
    augment = split == "train"
    dataset = build_dataset(recipe.data, split, augment=augment)
    classifier = build_classifier(recipe, backbone, dataset.class_names).eval()
    wanted = {"data": recipe.data, "cache": recipe.cache, "seed": recipe.extractor.seed, "augment": augment}
    processes = PartialState(cpu=True)
    return {"classifier": classifier, "dataset": dataset, "split": split, "processes": processes, **wanted}


def plan_of(used: dict[str, Any]) -> CachePlan:
    """What is wanted of the cache, from `parts`."""
    return plan_for(**{name: value for name, value in used.items() if name != "processes"})


def extracted(used: dict[str, Any], batch_size: int = BATCH_SIZE) -> CachedFeatures:
    """What `difformer extract` does with one split, from `parts`: all of it is looked at, whatever is there."""
    names = ("split", "classifier", "dataset", "processes")
    job = Job(plan=plan_of(used), workers=0, batch_size=batch_size, **{name: used[name] for name in names})
    on_main(job.processes, partial(announce, [job]))
    return extract_missing(job)


def run(recipe: Recipe, backbone: Backbone, split: str = "train", **options: Any) -> CachedFeatures:
    """Extracts, here."""
    return extracted(parts(recipe, backbone, split), **options)


def folder_of(recipe: Recipe, backbone: Backbone, split: str = "train") -> Path:
    """Where the features belong."""
    return plan_of(parts(recipe, backbone, split)).folder


def run_in_child(
    root: Path,
    folder: Path,
    *,
    variables: Mapping[str, str] | None = None,
    shard_size: int = 4,
    message: str | None = None,
) -> Any:
    """Extracts two views of the training split in another process, which is returned while it runs.

    Args:
        root, folder, shard_size: of data set and cache.
        variables: of the environment of one of several processes.
        message: of the error that is expected.
    """
    return start(_extract, root, folder, shard_size, message, variables=variables)


def kill_at(child: Any, folder: Path, *, shards: int, seconds: float) -> None:
    """Kills a process some time after a cache's folder has so many shards."""
    wait_for(lambda: folder.is_dir() and len(list(folder.glob("view*"))) >= shards, child)
    time.sleep(seconds)
    child.kill()
    child.join()


def _extract(root: Path, folder: Path, shard_size: int, message: str | None) -> None:
    recipe = recipe_for(root, folder, cache={"folder": str(folder), "views": 2, "shard_size": shard_size})
    recipe = recipe if message is None else recipe_for(root, folder, data={"check_images": "none"})
    dataset = build_dataset(recipe.data, "train", augment=True)
    backbone = create_backbone(tiny_unet(), schedule="linear")
    classifier = build_classifier(recipe, backbone, dataset.class_names).eval()
    try:
        state = PartialState(cpu=True)
        wanted = {"data": recipe.data, "cache": recipe.cache, "seed": recipe.extractor.seed, "augment": True}
        open_or_extract(classifier, dataset, "train", processes=state, **wanted)
        assert state.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        if message is None or message not in str(error):
            raise
    else:
        assert message is None, "an error was expected"
