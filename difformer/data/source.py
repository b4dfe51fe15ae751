"""What the readers give: one whole split of a data set, before labels are left out and images transformed."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.data.images import Content, ImageError, decode_image
from difformer.data.spec import DataConfig
from difformer.data.targets import Annotations, Target

if TYPE_CHECKING:
    from PIL.Image import Image


class DataError(ValueError):
    """A data set on the disk is not as expected; the message says where, and what was expected."""


# Without class names there are as many classes as the labels need; more than this means wrong labels.
_MOST_CLASSES = 1_000_000

_HEAD, _TAIL = 1 << 14, 64


class Ends(NamedTuple):
    """What shows which image an encoded one is, and whether it is whole, without reading all of it.

    Attributes:
        head: its first 16 KiB.
        tail: its last 64 bytes.
        size: in bytes.
    """

    head: bytes
    tail: bytes
    size: int


class Names:
    """File names, packed: a list of a million strings would be copied into every worker that reads from it, since
    Python counts references inside the strings.

    Args:
        names: may hold bytes that are not UTF-8, in the form that `os.listdir` gives them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.packed = b"".join(encoded)
        self.stops = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, index: int) -> str:
        start = self.stops[index - 1] if index else 0
        return self.packed[start : self.stops[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, eq=False)
class Source:
    """One split of a data set: labels in memory, images on the disk.

    Attributes:
        title: data set, split and place, for messages.
        labels: (N,) int64 in [0, number of classes); empty where there are only targets or annotations, and the images
            are then of one class.
        class_names: in the order of the labels, all different. With annotations, those of pixels, objects or points.
        content: gives the image of an index, still encoded. Picklable, since workers get a copy.
        names: the images' file names relative to the split, where they have any.
        ids: (N,) int64 stable numbers, all different; the index in the split when left out.
        ends: how the image of an index begins and ends, where that takes less than reading it. Picklable.
        shards: (N,) int64 the shard of each image, non-decreasing, where there are shards.
        files: paths of the files that the image of an index lies in, where there are any: one, or those of the table
            that holds it. Picklable.
        in_order: gives the encoded images of ascending indices, where that is cheaper than one by one.
        targets: (N, …) finite numbers, at least one an image, that a task is to predict in place of the class; kept as
            float32.
        annotations: gives the target of an index that a dense task is to predict: a `Mask`, `Boxes` or `Points`.

    Raises:
        DataError: no image, a label out of range, ids or class names that repeat, or targets of another number or
            shape.
    """

    title: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    content: Callable[[int], Content]
    names: Names | None = None
    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ends: Callable[[int], Ends] | None = None
    shards: NDArray[np.int64] | None = None
    files: Callable[[int], tuple[str, ...]] | None = None
    in_order: Callable[[Sequence[int]], Iterator[Content]] | None = None
    targets: NDArray[np.float32] | None = None
    annotations: Annotations | None = None

    def __post_init__(self) -> None:
        self._check_targets()
        if self.annotations is not None and not len(self.labels):
            object.__setattr__(self, "labels", np.zeros(len(self.annotations), dtype=np.int64))
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        if self.annotations is not None and len(self.annotations) != len(labels):
            raise DataError(f"{self.title}: {len(labels)} images need as many annotations, got {len(self.annotations)}")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "ids", self.ids if len(self.ids) else np.arange(len(labels)))
        if not len(labels):
            raise DataError(f"{self.title} holds no image")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if len(wrong):
            classes = len(self.class_names)
            expected = f"with {classes} classes labels lie in [0, {classes})" if classes else "labels count from 0"
            raise DataError(
                f"{self.title}: {self.describe(wrong[0])} has label {labels[wrong[0]]}, but {expected}; "
                f"{len(wrong)} images are out of range"
            )
        repeated = [name for name, count in Counter(map(same_letters, self.class_names)).items() if count > 1]
        if repeated:
            raise DataError(
                f"{self.title}: class names must differ, also in another spelling of accents (Unicode normalisation), "
                f"but {repeated[:5]} repeat"
            )
        if len(np.unique(self.ids)) < len(self.ids):
            raise DataError(f"{self.title}: the images' ids must differ")

    def _check_targets(self) -> None:
        if self.targets is None:
            return
        targets = np.asarray(self.targets, dtype=np.float32)
        object.__setattr__(self, "targets", targets)
        if not targets.ndim or 0 in targets.shape[1:]:
            raise DataError(f"{self.title}: targets must be (N, …), at least one number an image, got {targets.shape}")
        if not len(self.labels):
            object.__setattr__(self, "labels", np.zeros(len(targets), dtype=np.int64))
            object.__setattr__(self, "class_names", self.class_names or ("image",))
        if len(targets) != len(self.labels):
            raise DataError(f"{self.title}: {len(self.labels)} images need as many targets, got {len(targets)}")
        wrong = np.flatnonzero(~np.isfinite(targets).all(axis=tuple(range(1, targets.ndim))))
        if len(wrong):
            raise DataError(
                f"{self.title}: {self.describe(wrong[0])} has the target {targets[wrong[0]]}, which is not finite; "
                f"{len(wrong)} images have such targets"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}: {len(self)} images, {len(self.class_names)} classes)"

    @property
    def folder(self) -> Path | None:
        """The folder that the images' names are relative to, where they are files of their own."""
        return self.content.root if isinstance(self.content, Files) else None

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

    def label(self, index: int, size: tuple[int, int] | None = None) -> int | Tensor | Target:
        """What is to be predicted for an index: its annotation or target, where there are any, else its class.

        Args:
            index: of the image.
            size: (H, W) of the image, upright, which an annotation must be for; not checked when None.

        Raises:
            ImageError, ValueError: as `Annotations`; or it is for an image of another size.
        """
        if self.annotations is not None:
            found = self.annotations(index, size)
            if size is not None:
                who = ", ".join(self.annotations.files(index)) or "its annotation"
                refuse_another_size(f"{self.title}: {self.describe(index)}", size, who, found.size)
            return found
        if self.targets is None:
            return int(self.labels[index])
        return torch.from_numpy(np.asarray(self.targets[index]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the split's labels, targets, ids, class names, file names and annotations in memory: two splits
        that have the same one agree in them. The images, and masks that are files, are not read.
        """
        digest = hashlib.sha256()
        for names in (Names(self.class_names), self.names or Names(())):
            digest.update(names.packed)
            add_numbers(digest, names.stops)
        add_numbers(digest, self.labels)
        add_numbers(digest, self.ids)
        if self.targets is not None:
            digest.update(str(self.targets.shape).encode() + np.ascontiguousarray(self.targets, dtype="<f4").tobytes())
        if self.annotations is not None:
            digest.update(self.annotations.digest.encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Files:
    """Images that are files of their own: gives the path of an index."""

    root: Path
    names: Names

    def __call__(self, index: int) -> Path:
        return self.root / self.names[index]

    def files(self, index: int) -> tuple[str, ...]:
        """The one file."""
        return (os.path.join(self.root, self.names[index]),)

    def ends(self, index: int) -> Ends:
        """Raises OSError when the file cannot be read."""
        with self(index).open("rb", buffering=0) as file:
            return read_ends(file, 0, file.seek(0, 2))


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
    images = Files(root, Names(names))
    numbers = np.asarray(labels, dtype=np.int64)
    return Source(title, numbers, tuple(classes), images, names=images.names, ends=images.ends, files=images.files)


def read_ends(file: BinaryIO, start: int, size: int) -> Ends:
    """How an image inside a file begins and ends.

    Args:
        file: open for reading.
        start: where in it the image begins.
        size: of the image, in bytes.
    """
    file.seek(start)
    head = file.read(min(size, _HEAD))
    file.seek(start + max(0, size - _TAIL))
    return Ends(head, file.read(min(size, _TAIL)), size)


def add_numbers(digest: "hashlib._Hash", numbers: NDArray[np.int64]) -> None:
    """Adds numbers to a digest, with how many they are."""
    digest.update(len(numbers).to_bytes(8, "little") + np.ascontiguousarray(numbers, dtype="<i8").tobytes())


def numbered_labels(
    title: str, labels: Sequence[int], config: DataConfig, everywhere: Iterable[int] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels counted from 0, and the names of their classes: `class_names`, else as many numbers as labels need.

    Args:
        title: for messages.
        labels: of the split, as they are stored.
        config: says the names and the first label.
        everywhere: the labels of all splits, where they are known.

    Raises:
        DataError: a label above a million without class names, or labels that seem to count from 1, so that class 0
            would be empty.
    """
    numbers = np.asarray(labels, dtype=np.int64)
    known = numbers if everywhere is None else np.asarray(list(everywhere), dtype=np.int64)
    smallest, largest = (int(known.min()), int(known.max())) if len(known) else (0, -1)
    names, first = config.class_names, config.first_label
    if first is None and smallest == 1 and (names is None or largest == len(names)):
        raise DataError(
            f"{title}: the labels go from 1 to {largest}, so class 0 would have no image. Where classes are counted "
            f"from 1, set first_label: 1; where class 0 has no image here, first_label: 0"
        )
    first = first or 0
    if names is None and largest - first >= _MOST_CLASSES:
        raise DataError(f"{title} has the label {largest}; set class_names, or number the classes without gaps")
    return numbers - first, names or tuple(map(str, range(first, largest + 1)))


def refuse_another_size(image: str, size: tuple[int, int], who: str, said: tuple[int, int]) -> None:
    """Raises DataError when an annotation is for an image of another size.

    Args:
        image: its name.
        size: (H, W) of it, upright.
        who: the file that says another size.
        said: (H, W).
    """
    if tuple(size) != tuple(said):
        own, other = (f"{height}×{width}" for height, width in (size, said))
        raise DataError(
            f"{image} is {own} (height, width; upright, as its EXIF orientation says), but {who} says {other}"
        )


def below(name: str, file: Path) -> str:
    """A name of a file as another file has it, which must not lead out of the folder that it is relative to.

    Args:
        name: with forward slashes.
        file: that has it, for messages.

    Raises:
        DataError: it is an absolute path, or has `..` in it.
    """
    path = PureWindowsPath(name)
    if path.drive or path.root or ".." in path.parts:
        raise DataError(
            f"{file} names {name!r}, which may lie outside the data set; names must be relative, without .."
        )
    return name


def refuse_first_label(title: str, config: DataConfig) -> None:
    """Raises DataError when first_label is given for labels that are no plain numbers, where it would do nothing."""
    if config.first_label is not None:
        raise DataError(
            f"{title}: first_label is for labels that are plain numbers, and there are none here; leave first_label out"
        )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8: {error}") from error


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
        problem = f"{folder} is a file" if folder.exists() else f"there is no folder {folder}"
        raise FileNotFoundError(f"{title}: {problem}; root must be the folder of the data set")
    return next((folder / name for name in below if (folder / name).is_dir()), folder)


def unique_names(names: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """Class names, with the key in brackets where two classes have one name, as ImageNet's two cranes."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({key})" for name, key in zip(names, keys, strict=True))


def same_letters(name: str) -> str:
    """One spelling of a name whose accented letters may be one code point or two, as macOS writes them."""
    return unicodedata.normalize("NFC", name)


def unknown_split(title: str, split: str, known: Sequence[str]) -> DataError:
    """The error for a split that a data set does not have."""
    return DataError(
        f"{title} has no split {split!r}; it has {', '.join(known) or 'none'}. "
        f"Name one of them, or map yours to it with splits: {{{split}: NAME}}"
    )
