"""The small weights that lie in the repository's `checkpoints/`, by name, and the manifest that says what they are."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from difformer.checkpoints.weights import CheckpointError
from difformer.config import as_positive_integer, from_mapping
from difformer.files import sha256

MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
Kind = Literal["backbone", "classifier"]

# Inside the package in a wheel, beside it in a clone.
_FOLDERS = (Path(__file__).parents[1] / "weights", Path(__file__).parents[2] / "checkpoints")


@dataclass(frozen=True)
class Training:
    """What a shipped file was trained with.

    Attributes:
        recipe: path in the repository.
        data: the images, in words.
    """

    recipe: str
    data: str

    def __post_init__(self) -> None:
        _check_words(self, "recipe", "data")


@dataclass(frozen=True)
class ShippedFile:
    """A weight file that ships, as the manifest describes it.

    Attributes:
        file: path in `checkpoints/`, with forward slashes.
        sha256: digest of the file.
        bytes: its size.
        kind: backbone or classifier.
        licence: of the weights, and of the images they were trained on.
        source: what it was trained with.
        card: path of its model card in `checkpoints/`.
        backbone: for a classifier, the name of the shipped backbone it was trained on; None for a backbone.

    Raises:
        ValueError: a path that leads elsewhere, a malformed digest, an unknown kind, or a backbone where none belongs.
    """

    file: str
    sha256: str
    bytes: int
    kind: Kind
    licence: str
    source: Training
    card: str
    backbone: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Mapping):
            object.__setattr__(self, "source", from_mapping(Training, self.source))
        if not isinstance(self.source, Training):
            raise ValueError(f"source must say recipe and data, got {self.source!r}")
        _check_words(self, "file", "licence", "card")
        for name, suffix in (("file", SUFFIX), ("card", ".md")):
            check_inside(name, getattr(self, name), suffix)
        if not re.fullmatch("[0-9a-f]{64}", str(self.sha256)):
            raise ValueError(f"sha256 must be 64 hexadecimal digits, got {self.sha256!r}")
        as_positive_integer("bytes", self.bytes)
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if (self.kind == "classifier") != (self.backbone is not None):
            raise ValueError(f"a classifier names its backbone, and a backbone none; {self.file} has {self.backbone!r}")

    @property
    def name(self) -> str:
        """What users call it: the file without its suffix."""
        return self.file.removesuffix(SUFFIX)


def shipped_folder() -> Path | None:
    """Where the weights lie that ship: `checkpoints/` of a clone, or a folder of the installed package; None where it
    was installed without them.
    """
    return next((folder for folder in _FOLDERS if (folder / MANIFEST).is_file()), None)


def shipped() -> Mapping[str, ShippedFile]:
    """The weights that ship, by name; none where the package was installed without them.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    folder = shipped_folder()
    return {} if folder is None else read_manifest(folder)


def read_manifest(folder: Path) -> dict[str, ShippedFile]:
    """The entries of a folder's manifest, by name.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is no list of entries, or one of them is malformed or there twice.
    """
    path = folder / MANIFEST
    entries: dict[str, ShippedFile] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise ValueError(f"it must be a list of entries, got {type(content).__name__}")
        for values in content:
            if not isinstance(values, Mapping):
                raise ValueError(f"an entry must have keys and values, got {values!r}")
            entry = from_mapping(ShippedFile, values)
            if entry.name in entries:
                raise ValueError(f"{entry.name} is there twice")
            entries[entry.name] = entry
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is malformed: {error}. {_remedy(path)}") from error
    return entries


def verify_shipped(path: Path) -> None:
    """Makes sure that a file is whole, if it is one that ships; others are not checked.

    Raises:
        CheckpointError: its digest is not the manifest's, or the manifest is damaged.
    """
    folder = shipped_folder()
    if folder is None or not path.resolve().is_relative_to(folder.resolve()):
        return
    file = path.resolve().relative_to(folder.resolve()).as_posix()
    entry = read_manifest(folder).get(file.removesuffix(SUFFIX))
    if entry is None or entry.file != file or sha256(path) == entry.sha256:
        return
    raise CheckpointError(
        f"{path} is damaged or was changed: it ships with difformer, and its SHA-256 is not the one in {MANIFEST}. "
        f"{_remedy(path)}, or give verify=False to use it as it is"
    )


def missing_hint(name: str) -> str:
    """What to do about a name that was not found, if it may name weights that ship; else an empty text."""
    folder = shipped_folder()
    if folder is None:
        return (
            " The weights that ship with difformer are not in this installation: install its wheel, or clone its "
            "repository and run `pip install -e .` there, or set $DIFFORMER_CHECKPOINTS to the clone's checkpoints/"
        )
    entry = read_manifest(folder).get(name)
    if entry is None:
        return ""
    path = folder / entry.file
    if path.is_file():
        return f" It ships with difformer, as {path}; leave the folder out (--folder, --weights_folder) to find it"
    return f" It ships with difformer, but {path} is missing. {_remedy(path)}"


def check_inside(name: str, value: str, suffix: str) -> None:
    """Raises ValueError unless a text is a path within a folder, with forward slashes, that ends as it should."""
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != value or not path.stem or path.suffix != suffix:
        raise ValueError(f"{name} must be a path inside checkpoints/ that ends in {suffix}, got {value!r}")


def _check_words(owner: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(owner, name), str) or not getattr(owner, name).strip():
            raise ValueError(f"{name} must be a text that is not empty, got {getattr(owner, name)!r}")


def _remedy(path: Path) -> str:
    """How to bring back a file of the repository."""
    return f"Restore it with: git -C {path.parent} checkout -- {path.name}"
