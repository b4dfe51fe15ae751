"""torchvision's data sets, by name."""

import inspect
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from difformer._optional import require
from difformer.data.listing import is_data, is_hidden
from difformer.data.source import DataError, Pixels, Source, file_source, find_root, unknown_split
from difformer.data.spec import DataConfig
from difformer.data.subset import split_holdout

_TRAIN_TEST: dict[str, tuple[str, ...]] = {"train": ("train",), "test": ("test",)}
_THREE: dict[str, tuple[str, ...]] = {name: (name,) for name in ("train", "val", "test")}

_DOWNLOAD = "; with download: true torchvision fetches it"
# Its address no longer exists, so that nothing can fetch it.
_CARS = (
    "stanford_cars/ with devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat, "
    "cars_train/*.jpg and cars_test/*.jpg, unpacked from a copy of the data set"
)

# EuroSAT has no official split; this fraction of each class is its test split.
EUROSAT_TEST = 0.2


@dataclass(frozen=True)
class _Kind:
    """A class of torchvision, and the splits offered here, each with torchvision's splits that make it up."""

    cls: str
    splits: dict[str, tuple[str, ...]] = field(default_factory=lambda: _TRAIN_TEST)
    pixels: bool = False


TORCHVISION_SETS = {
    "cifar10": _Kind("CIFAR10", pixels=True),
    "cifar100": _Kind("CIFAR100", pixels=True),
    "flowers102": _Kind("Flowers102", _THREE | {"trainval": ("train", "val")}),
    "fgvcaircraft": _Kind("FGVCAircraft", _THREE | {"trainval": ("trainval",)}),
    "stanfordcars": _Kind("StanfordCars"),
    # Its training split is called trainval; there is no other.
    "oxfordiiitpet": _Kind("OxfordIIITPet", {"train": ("trainval",), "trainval": ("trainval",), "test": ("test",)}),
    "food101": _Kind("Food101"),
    "dtd": _Kind("DTD", _THREE | {"trainval": ("train", "val")}),
    "eurosat": _Kind("EuroSAT", _TRAIN_TEST | {"all": ("all",)}),
}


def read_torchvision(config: DataConfig, split: str, name: str) -> Source:
    """One split of a data set that torchvision knows, in the layout torchvision expects below root.

    Args:
        config: with root, and whether torchvision may download.
        split: as `TORCHVISION_SETS` lists them.
        name: a key of it.

    Raises:
        DataError: no such split.
        FileNotFoundError: the data is not there, or not whole.
    """
    kind = TORCHVISION_SETS[name]
    if split not in kind.splits:
        raise unknown_split(kind.cls, split, list(kind.splits))
    if config.download and config.root:
        Path(config.root).expanduser().mkdir(parents=True, exist_ok=True)
    root = find_root(config.root, kind.cls)
    parts = [_open(kind, root, part, config.download) for part in kind.splits[split]]
    # Releases of torchvision before 0.21 do not name the flowers.
    classes = tuple(map(str, getattr(parts[0], "classes", config.class_names) or ()))
    if not classes:
        raise DataError(f"{kind.cls} has no class names in this release of torchvision; update it, or set class_names")
    title = f"{kind.cls} {split} in {root}"
    if kind.pixels:
        images = np.concatenate([part.data for part in parts])
        labels = np.concatenate([part.targets for part in parts])
        return Source(title, labels, classes, Pixels(images))
    samples = [sample for part in parts for sample in _samples(part)]
    # torchvision takes everything in the folder, hidden entries too.
    shown = [label for label, folder in enumerate(classes) if not is_hidden(folder)]
    place = {label: i for i, label in enumerate(shown)}
    samples = [
        (path, place[label])
        for path, label in samples
        if label in place and is_data(Path(os.path.relpath(path, root)).as_posix())
    ]
    classes = tuple(classes[label] for label in shown)
    if name == "eurosat" and split != "all":
        kept, held = split_holdout([label for _, label in samples], EUROSAT_TEST, config.split_seed)
        samples = [samples[i] for i in (held if split == "test" else kept)]
    files = [Path(os.path.relpath(path, root)).as_posix() for path, _ in samples]
    return file_source(title, root, files, [label for _, label in samples], classes)


def _open(kind: _Kind, root: Path, part: str, download: bool) -> Any:
    cls = getattr(require("torchvision.datasets", f"reading {kind.cls}", install="torchvision"), kind.cls)
    if cls.__name__ in ("StanfordCars", "Flowers102"):
        require("scipy.io", f"reading {kind.cls}", install="scipy")
    known = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {"split": part} if "split" in known else {"train": part == "train"}
    if kind.cls == "EuroSAT":
        arguments = {}
    # A loader that loads nothing lets the labels be asked for without decoding an image.
    if "loader" in known:
        arguments["loader"] = str
    try:
        return cls(str(root), download=download, **arguments)
    # torchvision has no error type of its own, and damaged files raise errors of many types.
    except Exception as error:
        hint = f"; root must hold {_CARS}" if kind.cls == "StanfordCars" else _DOWNLOAD
        raise FileNotFoundError(f"{kind.cls} cannot be read from {root}: {error}{hint}") from error


def _samples(dataset: Any) -> list[tuple[str, int]]:
    """Path and label of every image."""
    if "loader" in inspect.signature(type(dataset)).parameters:
        return [(str(path), int(label)) for path, label in (dataset[i] for i in range(len(dataset)))]
    # OxfordIIITPet has no such argument, and in older releases neither have the others.
    if hasattr(dataset, "_samples"):
        return [(str(path), int(label)) for path, label in dataset._samples]
    paths = getattr(dataset, "_images", None) or getattr(dataset, "_image_files", None)
    if paths is None:
        raise DataError(f"this release of torchvision does not say where the images of {type(dataset).__name__} lie")
    return [(str(path), int(label)) for path, label in zip(paths, dataset._labels, strict=True)]
