"""What the readers give: one whole split of a data set, before labels are left out and images transformed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from difformer.data.images import Content, ImageError, decode_image

if TYPE_CHECKING:
    from PIL.Image import Image


class DataError(ValueError):
    """A data set is not as it should be on the disk; the message says where and what was expected."""


@dataclass(frozen=True, eq=False)
class Source:
    """One split of a data set: labels in memory, images on the disk.

    Attributes:
        title: data set, split and place, for messages.
        labels: (N,) int64 in [0, number of classes).
        class_names: in the order of the labels, all different.
        content: gives the image of an index, still encoded. Picklable, since workers get a copy.
        names: the images' file names relative to the split, where they have any.
        ids: (N,) int64 stable numbers, all different; the index in the split when left out.
        on_disk: whether each image is a file of its own, so that looking at its header is cheap.
        shards: (N,) int64 the shard of each image, non-decreasing, where there are shards.
        in_order: gives the encoded images of ascending indices, where that is cheaper than one by one.

    Raises:
        DataError: no image, a label out of range, or ids or class names that repeat.
    """

    title: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    content: Callable[[int], Content]
    names: Sequence[str] | None = None
    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    on_disk: bool = False
    shards: NDArray[np.int64] | None = None
    in_order: Callable[[Sequence[int]], Iterator[Content]] | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "ids", self.ids if len(self.ids) else np.arange(len(labels)))
        if not len(labels):
            raise DataError(f"{self.title} holds no image")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if len(wrong):
            raise DataError(
                f"{self.title}: {self.describe(wrong[0])} has label {labels[wrong[0]]}, but with "
                f"{len(self.class_names)} classes labels lie in [0, {len(self.class_names)}); "
                f"{len(wrong)} images are out of range"
            )
        repeated = [name for name, count in Counter(self.class_names).items() if count > 1]
        if repeated:
            raise DataError(f"{self.title}: class names must differ, but {repeated[:5]} repeat")
        if len(np.unique(self.ids)) < len(self.ids):
            raise DataError(f"{self.title}: the images' ids must differ")

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """The name of an image in messages."""
        return f"image {index}" if self.names is None else self.names[index]

    def read(self, index: int) -> "Image":
        """The RGB image of an index.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            content = self.content(index)
        except OSError as error:
            raise ImageError(f"{self.title}: {self.describe(index)} cannot be read: {error}") from error
        return self.decode(index, content)

    def decode(self, index: int, content: Content) -> "Image":
        """The RGB image of an index from what `content` or `in_order` gave.

        Raises:
            ImageError: it cannot be read.
        """
        where = str(content) if isinstance(content, Path) else f"{self.title}: {self.describe(index)}"
        return decode_image(content, where)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the split's labels, ids, class names and file names: two splits with the same one agree."""
        digest = hashlib.sha256()
        for part in (self.labels, self.ids):
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        for names in (self.class_names, self.names or ()):
            digest.update("\0".join(names).encode() + b"\1")
        return digest.hexdigest()


@dataclass(frozen=True)
class Files:
    """Images that are files of their own: gives the path of an index."""

    root: Path
    names: Sequence[str]

    def __call__(self, index: int) -> Path:
        return self.root / self.names[index]


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images in memory: gives (H, W, 3) uint8 of an index."""

    images: NDArray[np.uint8]

    def __call__(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]


def file_source(title: str, root: Path, names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> Source:
    """A split whose images are files below a folder.

    Args:
        title: for messages.
        root: the folder.
        names: of the files, relative to it, with forward slashes.
        labels: one a file, in [0, number of classes).
        classes: names.

    Raises:
        DataError: as `Source`.
    """
    numbers = np.asarray(labels, dtype=np.int64)
    return Source(title, numbers, tuple(classes), Files(root, names), names=names, on_disk=True)


def find_root(root: str | None, title: str, *below: str) -> Path:
    """The folder of a data set: the one given, or a folder in it with the name that the archive unpacks to.

    Raises:
        DataError: none was given.
        FileNotFoundError: it is not there.
    """
    if root is None:
        raise DataError(f"{title} needs root, the folder it lies in")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{title}: there is no folder {folder}; check root")
    return next((folder / name for name in below if (folder / name).is_dir()), folder)


def unique_names(names: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """Class names with the key in brackets where a name is there twice, as ImageNet's two cranes are."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({key})" for name, key in zip(names, keys, strict=True))


def unknown_split(title: str, split: str, known: Sequence[str]) -> DataError:
    """The error for a split that a data set does not have."""
    return DataError(
        f"{title} has no split {split!r}; it has {', '.join(known) or 'none'}. "
        f"Name one of them, or map yours to it with splits: {{{split}: NAME}}"
    )
