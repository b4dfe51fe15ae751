"""Where the targets of images lie: records in memory, or a mask of each image in a file."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from difformer._optional import require
from difformer.data.images import ImageError
from difformer.data.source import DataError, Files, Names, Source, refuse_another_size
from difformer.data.spec import OnBadBox
from difformer.data.targets import Boxes, Mask, Points, Target, box_problem
from difformer.maps import IGNORE
from difformer.rle import decode_rle

_log = getLogger(__name__)

# Formats whose pixels are kept as they are.
_LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")

Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Targets in memory, as JSON: a million Python objects would be copied into every worker that looks at them.

    Attributes:
        kind: of the targets.
        texts: one record an image, a mapping with the image's `size`, height and width.
        build: makes its target of what the JSON holds. Picklable.
        names: of the images.
        file: that the records are from, or one an image.
    """

    kind: type[Target]
    texts: Names
    build: Callable[[Any], Target]
    names: Names
    file: Path | Files

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the records."""
        return hashlib.sha256(self.texts.packed + self.texts.stops.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.texts)

    def __call__(self, index: int, size: tuple[int, int] | None = None) -> Target:
        """The target of an image.

        Raises:
            DataError: the record does not make one, or is for an image of another size, see `Annotations`.
        """
        file = self.file(index) if isinstance(self.file, Files) else self.file
        with reported(f"{file}: what it says of {self.names[index]}"):
            record = json.loads(self.texts[index])
            if size is not None:
                refuse_another_size(self.names[index], size, str(file), record["size"])
            return self.build(record)

    def files(self, index: int) -> tuple[str, ...]:
        """None: the records are in memory."""
        return ()


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """Masks of images, each in a file of its own.

    Attributes:
        place: gives the path of an index.
        classes: how many there are.
        colours: with the class of each, or 255, where masks show them in colours. Without, the numbers of pixels or of
            a palette count.
        first: the number of the first class; smaller ones are ignored.
    """

    place: Files
    classes: int
    colours: tuple[tuple[Colour, int], ...] = ()
    first: int = 0

    @property
    def kind(self) -> type[Mask]:
        return Mask

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the numbers and colours mean; masks are files."""
        return hashlib.sha256(repr((self.classes, self.colours, self.first)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.place.names)

    def files(self, index: int) -> tuple[str, ...]:
        """The mask's."""
        return self.place.files(index)

    def __call__(self, index: int, size: tuple[int, int] | None = None) -> Mask:
        """The mask of an image.

        Args:
            index: of the image.
            size: not used; masks are files that Pillow refuses where they would fill the memory.

        Raises:
            ImageError: it cannot be read, or all its pixels are ignored.
            DataError: it is a JPEG or the like, has colours without a meaning, or a number that is no class.
        """
        path = self.place(index)
        values = self._pixels(path)
        inside = (values >= self.first) & (values < self.first + self.classes) & (values != IGNORE)
        others = np.unique(values[~inside])
        wrong = others[(others != IGNORE) & ~((others >= 0) & (others < self.first))]
        if len(wrong):
            raise DataError(
                f"{path} holds the value {wrong[0]}, but there are {self.classes} classes, from {self.first} to "
                f"{self.first + self.classes - 1}, and {IGNORE} is what is ignored"
            )
        if not inside.any():
            raise ImageError(f"{path} has only pixels that are ignored")
        labels = np.full(values.shape, IGNORE, dtype=np.uint8)
        labels[inside] = values[inside] - self.first
        return Mask(torch.from_numpy(labels))

    def _pixels(self, path: Path) -> NDArray[Any]:
        """(H, W) numbers of the pixels; 255 where they are ignored by their colour."""
        images = require("PIL.Image", "reading masks", install="pillow")
        # Damaged files make the decoders raise errors of many kinds.
        try:
            with images.open(path) as image:
                image.load()
                kind, mode = image.format, image.mode
                pixels = np.asarray(image.convert("RGB") if self.colours else image)
        except Exception as error:
            raise ImageError(f"{path} cannot be read as a mask: {error}") from error
        if kind not in _LOSSLESS:
            raise DataError(f"{path} is a {kind}, which changes the numbers of pixels; masks must be PNG")
        if self.colours:
            return self._by_colour(path, pixels)
        if mode not in ("P", "L", "1", "I") and not mode.startswith("I;16"):
            raise DataError(
                f"{path} has pixels of mode {mode}; a mask has a number a pixel (grey or palette), or colours whose "
                "classes classes.txt names, one `R G B name` a line"
            )
        return pixels

    def _by_colour(self, path: Path, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        codes = pixels.astype(np.int32) @ np.asarray([1 << 16, 1 << 8, 1], dtype=np.int32)
        numbers = np.full(codes.shape, -1, dtype=np.int16)
        for (red, green, blue), number in self.colours:
            numbers[codes == (red << 16 | green << 8 | blue)] = number
        if (numbers < 0).any():
            colour = " ".join(map(str, pixels[numbers < 0][0]))
            raise DataError(f"{path} has the colour {colour}, which is no class of classes.txt")
        return numbers


def annotated(
    title: str,
    root: Path,
    names: Names,
    classes: Sequence[str],
    annotations: Recorded | MaskFiles,
    ids: Sequence[int] = (),
) -> Source:
    """A split whose images are files below a folder, with their targets; see `Source`.

    Raises:
        DataError: as `Source`.
    """
    images = Files(root, names)
    labels, numbers = np.zeros(len(names), dtype=np.int64), np.asarray(ids, dtype=np.int64)
    return Source(
        title, labels, tuple(classes), images, names, numbers, images.ends, None, images.files,
        annotations=annotations,
    )  # fmt: skip


def recorded(
    kind: type[Target], records: Sequence[Any], build: Callable[[Any], Target], names: Names, file: Path | Files
) -> Recorded:
    """Targets in memory, from what JSON can hold of each; see `Recorded`."""
    texts = Names(json.dumps(record, separators=(",", ":")) for record in records)
    return Recorded(kind, texts, build, names, file)


@contextmanager
def reported(what: Path | str) -> Iterator[None]:
    """Turns the errors of many kinds that a damaged file raises into a DataError that names it."""
    try:
        yield
    except (DataError, ImageError):
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError, SyntaxError) as error:
        raise DataError(f"{what} is not as its format has it, or is damaged: {error!r:.200}") from error


class BoxSieve:
    """Boxes that are none are errors, or left out and counted.

    Args:
        title: of the data set, for messages.
        rule: `raise` or `skip`.
    """

    def __init__(self, title: str, rule: OnBadBox) -> None:
        self.title, self._rule = title, rule
        self.left_out: list[str] = []

    def passes(self, where: str, box: Sequence[Any], size: tuple[int, int]) -> bool:
        """Whether a box x1, y1, x2, y2 is one.

        Raises:
            DataError: it is none, and such are not to be left out.
        """
        try:
            x1, y1, x2, y2 = map(float, box)
            problem = box_problem([x1, y1, x2, y2], size)
        except (TypeError, ValueError):
            problem = "must be four numbers"
        if problem is None:
            return True
        text = f"{where}: the box {list(box)} (x1, y1, x2, y2) {problem}"
        if self._rule == "raise":
            raise DataError(f"{self.title}: {text}; correct it, or leave such boxes out with on_bad_box: skip")
        self.left_out.append(text)
        return False

    def report(self) -> None:
        """Says in the log how many were left out."""
        if self.left_out:
            _log.warning("%s: left out %d boxes: %s", self.title, len(self.left_out), "; ".join(self.left_out[:5]))


def boxes_of(record: Any) -> Boxes:
    """Boxes from a record: `size`, and lists `boxes`, `labels`, `crowd`, `areas`, and `segments` where objects have
    masks: polygons or run lengths as COCO writes them.
    """
    height, width = record["size"]
    masks = None
    if "segments" in record:
        found = [mask_of(segment, height, width) for segment in record["segments"]]
        masks = torch.from_numpy(np.stack(found)) if found else torch.zeros(0, height, width, dtype=torch.bool)
    return Boxes(
        torch.tensor(record["boxes"], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(record["labels"], dtype=torch.int64),
        torch.tensor(record["crowd"], dtype=torch.bool),
        (height, width),
        torch.tensor(record["areas"], dtype=torch.float32),
        masks,
    )


def points_of(record: Any, swap: tuple[int, ...] | None) -> Points:
    """Points from a record: `size`, lists `points` (x, y; the first pixel is 0) and `visible`, and `box`."""
    visible = torch.tensor(record["visible"], dtype=torch.bool)
    points = (torch.tensor(record["points"], dtype=torch.float32).reshape(-1, 2) + 0.5) * visible[:, None]
    box = None if record["box"] is None else tuple(map(float, record["box"]))
    height, width = record["size"]
    return Points(points, visible, (height, width), swap, box)


def mask_of(segment: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W), the pixels of an object as COCO writes them.

    Args:
        segment: polygons, or a run-length code.
        height, width: of the image.

    Raises:
        ValueError: the code is not that of such an image.
        ImportError: polygons without pycocotools.
    """
    if isinstance(segment, dict):
        return decode_rle(segment, (height, width))
    coco = require("pycocotools.mask", "reading polygons of objects", install="pycocotools")
    decoded: NDArray[np.bool_] = coco.decode(coco.merge(coco.frPyObjects(segment, height, width))).astype(bool)
    return decoded
