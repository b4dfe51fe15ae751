"""Small training runs for the tests: a backbone file, a folder of coloured images, a recipe."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from support import tiny_unet
from torch import Tensor

from difformer import create_backbone
from difformer.config.reading import build, plain
from difformer.engine.config.recipe import Recipe
from difformer.engine.runtime.stopping import Stopped, StopRequest

# What the records of two equal runs may differ in.
TIMING = ("seconds", "images_per_second")


def write_images(
    root: Path, counts: dict[str, int], classes: int = 3, size: int = 40, seed: int = 0, contrast: int = 100
) -> Path:
    """A folder of noisy images, each class with a colour of its own; `counts` says how many a class by split."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (size, size + 8, 3))
                pixels[..., label % 3] += contrast
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def write_workplace(folder: Path) -> dict[str, Any]:
    """Backbone and images in a folder; returns a recipe's values that use them."""
    create_backbone(tiny_unet(), schedule="linear").save(folder / "backbone.safetensors")
    write_images(folder / "images", {"train": 10, "test": 5})
    return {
        "output": str(folder / "run"),
        "backbone": {"name": str(folder / "backbone.safetensors")},
        "extractor": {"taps": ["in03", "mid"], "timesteps": [90, 150]},
        "head": {
            "name": "difformer",
            "arguments": {"variant": "joint", "width": 16, "heads": 2, "layers": 1, "pool": 2},
        },
        "data": {"name": "folder", "root": str(folder / "images"), "size": 16, "holdout": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "training": {"epochs": 3, "batch_size": 8, "workers": 0},
        "evaluation": {"validation": "holdout", "select": "best", "test": "test"},
        "trackers": [],
    }


def write_subject(folder: Path, name: str) -> dict[str, Any]:
    """Backbone and images in a folder; returns values that every verb which looks at features takes."""
    workplace = write_workplace(folder)
    shared = {key: workplace[key] for key in ("data", "backbone")}
    return shared | {"output": str(folder / name), "workers": 0}


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested values with others over them."""
    result = dict(values)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def make_recipe(values: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe from values, with changes by section."""
    return build(Recipe, plain(merged(values, changes)))


def interrupt_after(run: Callable[[], object], steps: int) -> None:
    """Runs some steps and is then asked to stop."""
    original = StopRequest.signal_seen
    seen: list[int] = []

    def stopping(self: StopRequest) -> signal.Signals | None:
        seen.append(1)
        return signal.SIGTERM if len(seen) >= steps else original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "signal_seen", stopping)
        with pytest.raises(Stopped, match="resumes from there"):
            run()


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, without the times."""
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMING} for record in history]


def run_result(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]]:
    """What two equal runs agree in to the bit: weights of the classifier, records, test metrics."""
    return (
        load_file(folder / "classifier.safetensors"),
        records_of(folder),
        json.loads((folder / "results.json").read_text())["test"],
    )


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs have the same weights and metrics, to the bit."""
    (weights, records, test), (weights2, records2, test2) = run_result(one), run_result(other)
    assert records == records2
    assert test == test2
    assert weights.keys() == weights2.keys()
    assert all(weights[name].equal(weights2[name]) for name in weights)
