"""The folder of a run: configuration, environment, splits, metrics, state, classifier."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

import difformer
from difformer.data import ImageDataset
from difformer.engine.loop.state import TrainingState
from difformer.engine.recipes.reading import dotted, plain
from difformer.files import expand_user, write_atomically


class RunFolder:
    """Where everything of a run lies.

    Args:
        path: the folder; made by `claim` or `create`.
        record: the file with the recipe, by which the folder is known.
    """

    def __init__(self, path: str | Path, *, record: str = "recipe.yaml") -> None:
        self.path = expand_user(path)
        self.state = self.path / "state.pt"
        self.classifier = self.path / "classifier.safetensors"
        self.latest = self.path / "latest.safetensors"
        self.backbone = self.path / "backbone.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.recipe = self.path / record
        self.curves = self.path / "curves.png"
        self._lock: IO[str] | None = None
        self._made = False

    def check(self) -> None:
        """Raises FileExistsError when a file has its name, or it holds something that is no run."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; choose another --output")
        # Hidden files are the lock, and what a run that was killed has left half written.
        if self.path.is_dir() and not self.recipe.exists() and any(self._visible()):
            raise FileExistsError(f"{self.path} holds something that is no run; choose another --output")

    def create(self) -> None:
        """Makes the folder; raises OSError when it cannot be made."""
        self.path.mkdir(parents=True, exist_ok=True)

    def claim(self) -> None:
        """Makes the folder and takes it, until `release` or the end of the process; removes half-written files.

        Raises:
            FileExistsError: another run is at work in it.
            OSError: it cannot be made, or not be written.
        """
        self._made = not self.path.exists()
        self.create()
        self._lock = (self.path / ".lock").open("w")
        try:
            _lock(self._lock)
        except (BlockingIOError, PermissionError) as error:
            self.release()
            raise FileExistsError(f"another run is at work in {self.path}; choose another --output") from error
        except OSError:
            # Some file systems have no locks.
            pass
        for leftover in self.path.glob(".*.tmp"):
            # Folders of such names are results that others write into this one, perhaps at this moment.
            if leftover.is_file():
                leftover.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the folder back; one that was made for a run which never began is removed."""
        if self._lock is None:
            return
        self._lock.close()
        self._lock = None
        if self._made and not any(self._visible()):
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
                self.path.rmdir()

    def clear(self) -> None:
        """Removes what a run has left, the state first."""
        single = (self.state, self.results, self.classifier, self.latest, self.backbone, self.metrics, self.curves)
        patterns = ("subset-*.json", "samples*.png", "difformer/**/events.out.tfevents.*")
        for file in (*single, *(file for pattern in patterns for file in self.path.glob(pattern))):
            file.unlink(missing_ok=True)

    def _visible(self) -> Iterator[Path]:
        return (file for file in self.path.iterdir() if not file.name.startswith("."))

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the run, whole or not at all."""
        with write_atomically(self.path / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, content: Any) -> None:
        """Writes a file of the run as JSON, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Writes all records: those of a run that was killed may go further than its state."""
        self.write_text(self.metrics.name, "".join(json.dumps(record) + "\n" for record in history))

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def write_splits(self, datasets: Mapping[str, ImageDataset]) -> None:
        """Writes which images each split has, by id, and the label subset that chose them."""
        splits = {
            name: {"images": len(dataset), "digest": dataset.digest, "ids": dataset.ids.tolist()}
            for name, dataset in datasets.items()
        }
        self.write_text("splits.json", json.dumps(splits) + "\n")
        for name, dataset in datasets.items():
            if dataset.subset is not None:
                dataset.subset.save(self.path / f"subset-{name}.json")


def _lock(file: IO[str]) -> None:
    """Takes a file for this process alone: data workers that outlive it do not hold it.

    Raises:
        BlockingIOError, PermissionError: another process has it.
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows has other locks, of which the run's folder does without.
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def environment(processes: int, device: torch.device) -> dict[str, Any]:
    """What a run ran on and with."""
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors", "xformers")
    return {
        "difformer": difformer.__version__,
        "commit": _commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: found for name in packages if (found := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def saved_state(
    folder: RunFolder,
    recipe: Any,
    may_change: Collection[str],
    comparable: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> TrainingState | None:
    """The state to go on from, or None; raises ValueError when it is of another recipe, in comparable values."""
    if not folder.state.exists():
        return None
    state = TrainingState.load(folder.state)
    changed = changed_keys(comparable(state.recipe), comparable(plain(asdict(recipe))))
    other = {key: values for key, values in changed.items() if key not in may_change}
    if other:
        listed = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in other.items())
        raise ValueError(
            f"{folder.path} holds a run with another recipe: {listed}. Give the same to go on, choose another "
            f"--output, or --overwrite"
        )
    return state


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configurations differ, with both values."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        old, new = plain(before.get(key)), plain(now.get(key))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed |= changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changed[f"{prefix}{key}"] = (old, new)
    return changed


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys, with values of the types that trackers take."""
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in dotted(values)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with a plus sign when it has changes; None where it is no checkout."""
    tree = Path(difformer.__file__).parent.parent
    if not (tree / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(tree)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes.stdout.strip() else "")
