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

# The entry of results.json with the digests of its files, and the entries of earlier versions that name a file.
_FILES = "files"
_NAMED = ("classifier", "backbone")
_EVENTS = "difformer/**/events.out.tfevents.*"


class RunFolder:
    """The folder with all files of a run.

    The recipe has paths as they were given, since resuming and evaluating need them. No other file contains paths of
    this machine, its name or the command: environment, results, training state, classifier and backbone,
    TensorBoard's events.

    Args:
        path: the folder; made by `claim` or `create`.
        record: name of the file with the recipe, which marks the folder of a run.
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
        """Checks before long work that a run can use the folder.

        Raises:
            FileExistsError: it is a file, or holds something that is no run.
            OSError: it cannot be made or written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; choose another --output")
        # Hidden files are the lock, and files that a killed run left half written.
        if self.path.is_dir() and not self.recipe.exists() and any(self._visible()):
            raise FileExistsError(f"{self.path} holds something that is no run; choose another --output")
        check_writable(self.path)

    def create(self) -> None:
        """Makes the folder; raises OSError when it cannot be made."""
        self.path.mkdir(parents=True, exist_ok=True)

    def claim(self) -> None:
        """Makes the folder and locks it, until `release` or the end of the process; removes half-written files.

        Raises:
            FileExistsError: another run is using it.
            OSError: it cannot be made or written.
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
                f"another run is using {self.path}; choose another --output. One run on several machines without "
                "GPUs is started by torchrun: `accelerate launch --cpu` starts one on each (train/README.md)"
            ) from error
        except OSError:
            # Some file systems have no locks.
            pass
        self._forget_host()
        for leftover in self.path.glob(".*.tmp"):
            # Folders with such names are results that other processes may be writing here at this moment.
            if leftover.is_file():
                leftover.unlink(missing_ok=True)

    def release(self) -> None:
        """Unlocks the folder; removes it if it was made for a run that never began."""
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
        """Removes the files of an earlier run, the state first."""
        states = (self.previous, self.state)
        single = (*states, self.results, self.classifier, self.latest, self.backbone, self.metrics, self.curves)
        patterns = ("subset-*.json", "samples*.png", _EVENTS)
        for file in (*single, *(file for pattern in patterns for file in self.path.glob(pattern))):
            file.unlink(missing_ok=True)

    def _forget_host(self) -> None:
        """Removes the machine's name from the names of TensorBoard's event files; none may be open."""
        for file in self.path.glob(_EVENTS):
            # events.out.tfevents.SECONDS.HOST.PROCESS.NUMBER; the host may contain dots.
            parts = file.name.split(".")
            if len(parts) > 6:
                with contextlib.suppress(OSError):
                    file.rename(file.with_name(".".join([*parts[:4], *parts[-2:]])))

    def _visible(self) -> Iterator[Path]:
        return (file for file in self.path.iterdir() if not file.name.startswith("."))

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the run, completely or not at all."""
        with write_atomically(self.path / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, content: Any) -> None:
        """Writes a file of the run as JSON, completely or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Writes all records, in place of those in the file, which may be ahead of a killed run's state."""
        self.write_text(self.metrics.name, "".join(json.dumps(record) + "\n" for record in history))

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record to metrics.jsonl."""
        with errors_name(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def write_results(self, results: Mapping[str, Any], files: Collection[Path] = ()) -> dict[str, Any]:
        """Writes results.json, whose presence means that a run is finished.

        Args:
            results: as JSON types.
            files: of the run that belong to the results; their digests are written too.

        Returns:
            The results with these digests.
        """
        whole = {**results, _FILES: {file.name: sha256(file) for file in files}}
        self.write_json(self.results.name, sealed(whole))
        return whole

    def read_results(self) -> dict[str, Any]:
        """Reads what `write_results` wrote.

        Raises:
            OSError: it does not exist, or cannot be read.
            ValueError: it is damaged.
        """
        remedy = "remove it, and the run's command makes it again"
        results = read_json(self.results, remedy)
        if not isinstance(results, dict):
            raise ValueError(f"{self.results} is damaged: it holds no results; {remedy}")
        return results

    def finished(self) -> dict[str, Any] | None:
        """The results of a finished run. None where they, or a file that belongs to them, must be made, or made again;
        missing and damaged files are logged.

        Raises:
            OSError: a file cannot be read.
        """
        if not self.results.exists():
            return None
        try:
            results = self.read_results()
            # Results of earlier versions have no digests of their files, which then must be readable weights.
            names: dict[str, Any] = dict.fromkeys(str(results[kind]) for kind in _NAMED if kind in results)
            for name, digest in {**names, **results.get(_FILES, {})}.items():
                file = self.path / name
                if not file.exists():
                    raise CheckpointError(f"{file} is missing; it is made again from the training state")
                if digest is None:
                    read_weights(file)
                elif sha256(file) != digest:
                    raise CheckpointError(f"{file} is damaged; it is made again from the training state")
        except ValueError as error:
            _log.warning("%s", error)
            return None
        return results

    def read_history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; for a finished run, exactly those that its results were written with.

        Raises:
            OSError: a file cannot be read.
            ValueError: metrics.jsonl or results.json is damaged.
        """
        remedy = "the run's command makes it again"
        digest = self.read_results().get(_FILES, {}).get(self.metrics.name) if self.results.exists() else None
        if digest is not None and sha256(self.metrics) != digest:
            raise ValueError(f"{self.metrics} is not what the run has written; {remedy}")
        try:
            records = [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.metrics} is damaged ({error}); {remedy}") from error
        if not all(isinstance(record, dict) for record in records):
            raise ValueError(f"{self.metrics} is damaged: a line is not a record; {remedy}")
        return records

    def write_splits(self, datasets: Mapping[str, ImageDataset]) -> None:
        """Writes the ids of each split's images, and the label subset that they were chosen by."""
        splits = {
            name: {"images": len(dataset), "digest": dataset.digest, "ids": dataset.ids.tolist()}
            for name, dataset in datasets.items()
        }
        self.write_text("splits.json", json.dumps(splits) + "\n")
        for name, dataset in datasets.items():
            if dataset.subset is not None:
                dataset.subset.save(self.path / f"subset-{name}.json")


def _lock(file: IO[str]) -> None:
    """Locks a file for this process only: data workers that outlive the process do not keep the lock.

    Raises:
        BlockingIOError, PermissionError: another process has locked it.
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows has other locks, which are not used here.
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def environment(processes: int, device: torch.device) -> dict[str, Any]:
    """The environment that a run's numbers may depend on: versions, hardware, processes and threads.

    It has no names and folders of the machine, and not the command, whose options are in the recipe.
    """
    packages: dict[str, str] = {}
    for name in ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors", "xformers"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "difformer": difformer.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys, with values of the types that trackers take."""
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in dotted(values)}


def _commit() -> str | None:
    """The commit of the source tree, with a plus sign if it has changes; None if it is no git checkout."""
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
