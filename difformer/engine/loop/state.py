"""The training state: a file that is replaced once the next is whole, and the previous state beside it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difformer.checkpoints import CheckpointError
from difformer.checkpoints.weights import check_fits, read_pickle
from difformer.files import sha256, write_atomically

FORMAT = "difformer.training"
FORMAT_VERSION = 2
# The version whose files end without a digest.
_UNSEALED_VERSION = 1
# The comment that ends the zip archive, after its length: the digest of everything before it.
_SEAL = b"difformer sha256 "
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size * 2


def snapshot(parts: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's weights, on their device."""
    return {name: tensor.detach().clone() for name, tensor in parts.state_dict().items()}


def restore(parts: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies weights into a module's own tensors, which an optimiser may hold too.

    Raises:
        CheckpointError: they do not fit.
    """
    own = parts.state_dict()
    integers = {name for name, tensor in own.items() if not tensor.is_floating_point()}
    check_fits(state, {name: tuple(tensor.shape) for name, tensor in own.items()}, source, integers=integers)
    parts.load_state_dict(dict(state))


@dataclass
class Progress:
    """How far a run is. Everything here depends on the recipe and the data alone, not on interruptions.

    Attributes:
        epoch: the current epoch, counted from 0.
        step: steps done in it.
        images: images seen in the whole run.
        loss_sum, counted: over the epoch's images so far, and how many these are.
        counts: what the task counts over these images, by name; whole numbers are kept as int.
        best, best_epoch: the best value of the criterion so far, and its epoch.
        waiting: evaluations since then.
        finished: whether the last epoch is done and evaluated.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    counted: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int | None = None
    waiting: int = 0
    finished: bool = False

    def add(self, loss_sum: float, counted: int, counts: Mapping[str, float]) -> None:
        """Takes a step into account."""
        self.step += 1
        self.images += counted
        self.loss_sum += loss_sum
        sums = {name: self.counts.get(name, 0) + count for name, count in counts.items()}
        self.counts = {name: int(total) if float(total).is_integer() else total for name, total in sums.items()}
        self.counted += counted

    def note(self, value: float, *, larger_is_better: bool) -> bool:
        """Takes an evaluation into account; returns whether it is the best so far (the first of equal ones)."""
        better = self.best is None or (value > self.best if larger_is_better else value < self.best)
        if better:
            self.best, self.best_epoch, self.waiting = value, self.epoch + 1, 0
        else:
            self.waiting += 1
        return better

    def next_epoch(self) -> None:
        """Goes to the beginning of the next epoch."""
        self.epoch += 1
        self.step = self.counted = 0
        self.counts = {}
        self.loss_sum = 0.0


@dataclass
class TrainingState:
    """What a run needs to resume.

    Attributes:
        recipe: as plain lists and dictionaries.
        sources: digests of images and backbone by name, so that a run does not resume with others.
        progress: how far it is.
        weights: of head and feedback.
        optimizer: its state.
        task: what the task has learned besides the weights.
        scaler: state of the loss scaler, with fp16.
        averaged: moving average of the weights, where there is one.
        history: the records of metrics.jsonl.
    """

    recipe: dict[str, Any]
    sources: dict[str, str]
    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    task: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    averaged: dict[str, Tensor] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path, previous: Path | None = None) -> None:
        """Writes it; an existing file stays until the new one is whole.

        Args:
            path: the file.
            previous: where the existing file is moved to.

        Raises:
            OSError: it cannot be written, such as on a full disk; the existing file is unchanged.
        """
        content = vars(self) | {"progress": vars(self.progress), "format": FORMAT, "format_version": FORMAT_VERSION}
        with write_atomically(path, overwrite=True, keep=previous) as temporary:
            try:
                torch.save(content, temporary)
            # torch reports a failed write as a RuntimeError about its archive.
            except RuntimeError as error:
                raise OSError(f"the training state {path} could not be written: {error}") from error
            _seal(temporary)

    @classmethod
    def load(cls, path: Path) -> "TrainingState":
        """Reads what `save` wrote, onto the CPU. A damaged file is not unpacked. Files of earlier versions only have
        checksums of their entries, which are verified before unpacking.

        Raises:
            FileNotFoundError: it does not exist.
            CheckpointError: it is damaged, or not a training state of this version.
        """
        body = path.stat().st_size - _SEAL_BYTES
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise CheckpointError(f"{path} cannot be read as a training state: it is no archive")
            file.seek(max(0, body))
            end = file.read()
        whole = end.startswith(_SEAL)
        if whole and sha256(path, size=body).encode() != end.removeprefix(_SEAL):
            raise CheckpointError(f"{path} is damaged: it does not have the digest it was written with")
        content = read_pickle(path, verify=not whole)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise CheckpointError(f"{path} is not a training state")
        version = content.pop("format_version", None)
        if version not in (_UNSEALED_VERSION, FORMAT_VERSION):
            raise CheckpointError(f"{path} was written by another version of difformer; train in another folder")
        if version != _UNSEALED_VERSION and not whole:
            raise CheckpointError(f"{path} is damaged: the digest at its end is missing")
        try:
            progress = dict(content["progress"])
            # Earlier versions only counted these.
            if "correct" in progress:
                progress["counts"] = {"correct": progress.pop("correct")}
            return cls(**content | {"progress": Progress(**progress)})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}") from error


def _seal(archive: Path) -> None:
    """Adds a comment with the digest of everything before it to a zip archive without comment."""
    with archive.open("rb+") as file:
        file.seek(-2, 2)
        file.write(_SEAL_BYTES.to_bytes(2, "little"))
    digest = sha256(archive)
    with archive.open("ab") as file:
        file.write(_SEAL + digest.encode())
