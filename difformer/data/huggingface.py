"""Data sets of the Hugging Face `datasets` library, from a folder or from the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.data.images import Content
from difformer.data.source import DataError, Source, unknown_split
from difformer.data.spec import DataConfig


@dataclass(frozen=True, eq=False)
class _Rows:
    """The image column of a table, undecoded."""

    table: Any
    column: str

    def __call__(self, index: int) -> Content:
        row = self.table[index][self.column]
        if row is None:
            return b""
        return bytes(row["bytes"]) if row["bytes"] is not None else Path(row["path"])


def read_huggingface(config: DataConfig, split: str) -> Source:
    """One split of a data set that `save_to_disk` wrote, of a folder that `load_dataset` reads, or of the hub.

    Raises:
        DataError: no root or split, or no column that could be the image or the label.
        FileNotFoundError: the folder is not there, or the hub does not have or give it.
    """
    if config.root is None:
        raise DataError("huggingface needs root: a folder, or a hub repository owner/name")
    title = f"huggingface {config.root}"
    tables = _load(config.root, title)
    if split not in tables:
        raise unknown_split(title, split, list(tables))
    features = tables[split].features
    image = config.image_column or _only(title, "image", features, "Image")
    label = config.label_column or _only(title, "label", features, "ClassLabel", default="label")
    for kind, column in (("image", image), ("label", label)):
        if column not in features:
            raise DataError(f"{title} has no {kind} column {column!r}; it has {', '.join(features)}")
    labels, classes = _labels(tables, split, label, config.class_names)
    # Images are decoded by the package's own reader, so that errors name the image.
    undecoded = require("datasets", "reading Hugging Face data sets").Image(decode=False)
    table = tables[split].select_columns([image]).cast_column(image, undecoded)
    return Source(f"{title} {split}", labels, classes, _Rows(table, image))


def _load(root: str, title: str) -> dict[str, Any]:
    """The tables of a data set by split."""
    datasets = require("datasets", "reading Hugging Face data sets")
    folder = Path(root).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or root.startswith((".", "~"))):
        raise FileNotFoundError(f"{title}: there is no folder {folder}; check root")
    saved = folder.is_dir() and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(root)
    # The library's errors for what is not there, not reachable or not readable are of many types.
    except Exception as error:
        raise FileNotFoundError(f"{title} cannot be loaded: {error}") from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


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
    tables: dict[str, Any], split: str, column: str, given: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels of one split, and the names of the classes of all."""
    values = np.asarray(list(tables[split][column]))
    names = getattr(tables[split].features[column], "names", None)
    if names is not None:
        return values.astype(np.int64), given or tuple(names)
    # Without declared classes, they are the values that occur in any split that has the column.
    everywhere = {value for table in tables.values() if column in table.features for value in table.unique(column)}
    if values.dtype.kind in "iu":
        return values.astype(np.int64), given or tuple(map(str, range(max(everywhere) + 1)))
    if values.dtype.kind not in "US":
        raise DataError(f"labels must be integers or words, but the column {column!r} holds {values.dtype}")
    classes = given or tuple(sorted(everywhere))
    place = {name: i for i, name in enumerate(classes)}
    return np.asarray([place.get(str(value), -1) for value in values], dtype=np.int64), classes
