"""Data sets of the Hugging Face `datasets` library, from a folder or from the hub."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.data.images import Content
from difformer.data.source import DataError, Ends, Source, numbered_labels, read_ends, refuse_first_label, unknown_split
from difformer.data.spec import DataConfig

# A data set on the hub: owner/name, or only the name of the oldest ones.
_REPOSITORY = r"[\w-][\w.-]*(/[\w.-]+)?"


@dataclass(frozen=True, eq=False)
class _Rows:
    """The image column of a table in Arrow's form, undecoded."""

    table: Any
    column: str
    table_files: tuple[str, ...]
    # Whether all images lie in the table, so that the file of an image is known without reading its row.
    all_inside: bool

    def __call__(self, index: int) -> Content:
        found = self._find(index)
        return found if isinstance(found, Path) else bytes(found)

    def files(self, index: int) -> tuple[str, ...]:
        """The file of an image, or those of the table that holds it."""
        found = None if self.all_inside else self._find(index)
        return (str(found),) if isinstance(found, Path) else self.table_files

    def ends(self, index: int) -> Ends:
        """Without copying an image that is in the table. Raises OSError when it is a file that cannot be read."""
        found = self._find(index)
        with found.open("rb") if isinstance(found, Path) else _arrow().BufferReader(found) as file:
            return read_ends(file, 0, file.seek(0, 2))

    def _find(self, index: int) -> Any:
        """The file of an image, or a buffer with its bytes, which is empty where there is none."""
        row = self.table[index][self.column][0]
        if row.is_valid and row["bytes"].is_valid:
            return row["bytes"].as_buffer()
        return Path(row["path"].as_py()) if row.is_valid and row["path"].is_valid else _arrow().py_buffer(b"")


def _arrow() -> Any:
    return require("pyarrow", "reading Hugging Face data sets")


def read_huggingface(config: DataConfig, split: str) -> Source:
    """One split of a data set that `save_to_disk` wrote, of a folder that `load_dataset` reads, or of the hub.

    The network is used only where the configuration says `download`; else a data set of the hub must be on the disk.

    Raises:
        DataError: no root or split, or no column that could be the image or the label.
        FileNotFoundError: the folder is not there, or the hub does not have it, refuses it, or may not be used.
    """
    if config.root is None:
        raise DataError("huggingface needs root: a folder, or a hub repository owner/name")
    title = f"huggingface {config.root}"
    tables = _load(config, title)
    if split not in tables:
        raise unknown_split(title, split, list(tables))
    features = tables[split].features
    image = config.image_column or _only(title, "image", features, "Image")
    label = config.label_column or _only(title, "label", features, "ClassLabel", default="label")
    for kind, column in (("image", image), ("label", label)):
        if column not in features:
            raise DataError(f"{title} has no {kind} column {column!r}; it has {', '.join(features)}")
    labels, classes = _labels(title, tables, split, label, config)
    # Images are decoded by the package's own reader, so that errors name the image.
    undecoded = require("datasets", "reading Hugging Face data sets").Image(decode=False)
    table = tables[split].select_columns([image]).cast_column(image, undecoded).with_format("arrow")
    compute = require("pyarrow.compute", "reading Hugging Face data sets", install="pyarrow")
    outside = compute.struct_field(table.data.column(image), "bytes").null_count
    files = tuple(str(file["filename"]) for file in tables[split].cache_files)
    rows = _Rows(table, image, files, all_inside=outside == 0)
    return Source(f"{title} {split}", labels, classes, rows, ends=rows.ends, files=rows.files)


def _load(config: DataConfig, title: str) -> dict[str, Any]:
    """The tables of a data set by split."""
    datasets = require("datasets", "reading Hugging Face data sets")
    root = str(config.root)
    folder = Path(root).expanduser()
    if not folder.is_dir() and not re.fullmatch(_REPOSITORY, root):
        raise FileNotFoundError(f"{title}: there is no folder {folder}; check root")
    saved = folder.is_dir() and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    place = str(folder) if folder.is_dir() else root
    try:
        with contextlib.nullcontext() if config.download else _offline(datasets):
            loaded = datasets.load_from_disk(place) if saved else datasets.load_dataset(place, config.configuration)
    # The library raises errors of many types for data that is missing, not reachable or not readable.
    except Exception as error:
        if folder.is_dir() or config.download:
            raise FileNotFoundError(f"{title} cannot be loaded: {error}") from error
        raise FileNotFoundError(
            f"{title}: there is no folder {folder}, and no data set of that name is on this machine; with "
            f"download: true it is fetched from the hub ({error})"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keeps the library from the network, as its environment variable HF_HUB_OFFLINE does when it is imported."""
    hub: Any = require("huggingface_hub.constants", "reading Hugging Face data sets", install="huggingface_hub")
    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before


def _only(title: str, kind: str, features: Any, feature_type: str, default: str | None = None) -> str:
    """The one column of a type."""
    columns = [name for name, feature in features.items() if type(feature).__name__ == feature_type]
    if len(columns) == 1:
        return str(columns[0])
    if not columns and default in features:
        return str(default)
    raise DataError(
        f"{title}: which column is the {kind}? Set {kind}_column to one of {', '.join(columns or list(features))}"
    )


def _labels(
    title: str, tables: dict[str, Any], split: str, column: str, config: DataConfig
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels of one split, and the names of the classes of all."""
    values = list(tables[split][column])
    kinds = {type(value).__name__ for value in values}
    if not kinds <= {"int"} and not kinds <= {"str"}:
        raise DataError(
            f"{title}: labels must be integers or words, but the column {column!r} holds {', '.join(sorted(kinds))}"
        )
    names = getattr(tables[split].features[column], "names", None)
    if names is not None or kinds == {"str"}:
        refuse_first_label(title, config)
    if names is not None:
        return np.asarray(values, dtype=np.int64), config.class_names or tuple(names)
    # Without declared classes, they are the values that occur in any split that has the column.
    everywhere = [v for table in tables.values() if column in table.features for v in table.unique(column)]
    if kinds == {"int"}:
        return numbered_labels(title, values, config, [v for v in everywhere if isinstance(v, int)])
    classes = config.class_names or tuple(sorted({v for v in everywhere if isinstance(v, str)}))
    place = {name: i for i, name in enumerate(classes)}
    unknown = [value for value in values if value not in place]
    if unknown:
        problem = f"the label {unknown[0]!r} is not in class_names; {len(unknown)} images have such labels"
        raise DataError(f"{title}: {problem}")
    return np.asarray([place[value] for value in values], dtype=np.int64), classes
