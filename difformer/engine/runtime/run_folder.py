"""The folder of a run: configuration, environment, splits, metrics, state, classifier."""

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from logging import getLogger
from pathlib import Path
from typing import IO, Any

import torch

import difformer
from difformer.checkpoints import CheckpointError, read_weights
from difformer.config.reading import dotted
from difformer.data import ImageDataset
from difformer.files import check_writable, errors_name, expand_user, read_json, sealed, sha256, write_atomically

_log = getLogger(__name__)

# The entry of results.json with the digests of the files they belong to, and those of earlier versions that name one.
_FILES = "files"
_NAMED = ("classifier", "backbone")
_EVENTS = "difformer/**/events.out.tfevents.*"


class RunFolder:
    """Where everything of a run lies.

    The recipe has paths as they were given, since resuming and evaluating need them. Nothing else says where things
    lie on this machine, what it is called or what was typed: environment, results, training state, classifier and
    backbone, TensorBoard's events.

    Args:
        path: the folder; made by `claim` or `create`.
        record: the file with the recipe, by which the folder is known.
    """

    def __init__(self, path: str | Path, *, record: str = "recipe.yaml") -> None:
        self.path = expand_user(path)
        self.state = self.path / "state.pt"
        self.previous = self.path / "state.previous.pt"
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
        """Finds out before long work that a run cannot have the folder.

        Raises:
            FileExistsError: a file has its name, or it holds something that is no run.
            OSError: it cannot be made, or not be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; choose another --output")
        # Hidden files are the lock, and what a run that was killed has left half written.
        if self.path.is_dir() and not self.recipe.exists() and any(self._visible()):
            raise FileExistsError(f"{self.path} holds something that is no run; choose another --output")
        check_writable(self.path)

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
            # Not released: the other run's files are open.
            self._lock.close()
            self._lock = None
            raise FileExistsError(
                f"another run is at work in {self.path}; choose another --output. One run on several machines without "
                "GPUs is started by torchrun: `accelerate launch --cpu` starts one on each (train/README.md)"
            ) from error
        except OSError:
            # Some file systems have no locks.
            pass
        self._forget_host()
        for leftover in self.path.glob(".*.tmp"):
            # Folders of such names are results that others write into this one, perhaps at this moment.
            if leftover.is_file():
                leftover.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the folder back; one that was made for a run which never began is removed."""
        if self._lock is None:
            return
        self._forget_host()
        self._lock.close()
        self._lock = None
        if self._made and not any(self._visible()):
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
                self.path.rmdir()

    def clear(self) -> None:
        """Removes what a run has left, the state first."""
        states = (self.previous, self.state)
        single = (*states, self.results, self.classifier, self.latest, self.backbone, self.metrics, self.curves)
        patterns = ("subset-*.json", "samples*.png", _EVENTS)
        for file in (*single, *(file for pattern in patterns for file in self.path.glob(pattern))):
            file.unlink(missing_ok=True)

    def _forget_host(self) -> None:
        """Takes the machine's name out of the names of TensorBoard's events; none may be open."""
        for file in self.path.glob(_EVENTS):
            # events.out.tfevents.SECONDS.HOST.PROCESS.NUMBER, of which the host may have dots.
            parts = file.name.split(".")
            if len(parts) > 6:
                with contextlib.suppress(OSError):
                    file.rename(file.with_name(".".join([*parts[:4], *parts[-2:]])))

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
        with errors_name(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def write_results(self, results: Mapping[str, Any], files: Collection[Path] = ()) -> dict[str, Any]:
        """Writes results.json, which says that a run is finished.

        Args:
            results: as JSON types.
            files: of the run that belong to them; their digests are noted.

        Returns:
            The results with these digests.
        """
        whole = {**results, _FILES: {file.name: sha256(file) for file in files}}
        self.write_json(self.results.name, sealed(whole))
        return whole

    def read_results(self) -> dict[str, Any]:
        """Reads what `write_results` wrote.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: it is damaged.
        """
        remedy = "remove it, and the run's command makes it anew"
        results = read_json(self.results, remedy)
        if not isinstance(results, dict):
            raise ValueError(f"{self.results} is damaged: it holds no results; {remedy}")
        return results

    def finished(self) -> dict[str, Any] | None:
        """The results of a run that has ended, or None where they, or a file they belong to, are still to be made, or
        to be made again: what is missing or damaged is logged.

        Raises:
            OSError: a file cannot be read.
        """
        if not self.results.exists():
            return None
        try:
            results = self.read_results()
            self._check_files(results)
        except ValueError as error:
            _log.warning("%s", error)
            return None
        return results

    def _check_files(self, results: Mapping[str, Any]) -> None:
        """Raises CheckpointError where a file that results belong to is missing or was changed. Of earlier versions,
        whose results do not say how files were, it must be a weight file.
        """
        names: dict[str, Any] = dict.fromkeys(str(results[kind]) for kind in _NAMED if kind in results)
        for name, digest in {**names, **results.get(_FILES, {})}.items():
            file = self.path / name
            if not file.exists():
                raise CheckpointError(f"{file} is missing; it is made again from the training state")
            if digest is None:
                read_weights(file)
            elif sha256(file) != digest:
                raise CheckpointError(f"{file} is damaged; it is made again from the training state")

    def read_history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; of a finished run, those that its results belong to.

        Raises:
            OSError: a file cannot be read.
            ValueError: it, or results.json, is damaged.
        """
        remedy = "the run's command makes it anew"
        digest = self.read_results().get(_FILES, {}).get(self.metrics.name) if self.results.exists() else None
        if digest is not None and sha256(self.metrics) != digest:
            raise ValueError(f"{self.metrics} is not what the run has written; {remedy}")
        try:
            records = [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.metrics} is damaged ({error}); {remedy}") from error
        if not all(isinstance(record, dict) for record in records):
            raise ValueError(f"{self.metrics} is damaged: it holds what is no record; {remedy}")
        return records

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
    except ImportError:  # Windows has other locks, which are not used here.
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def environment(processes: int, device: torch.device) -> dict[str, Any]:
    """What a run ran on and with, as far as its numbers may depend on it: versions, hardware, processes and threads.

    Neither names and folders of the machine nor the command, whose options are in the recipe.
    """
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors", "xformers")
    return {
        "difformer": difformer.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: found for name in packages if (found := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


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
