"""Sets of images to compare: folders, WebDataset shards, and arrays in `.npz` files, read batch by batch."""

import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from difformer._optional import require
from difformer.config import as_size, sides
from difformer.data import DataConfig, ImageError, Source, file_source, read_source
from difformer.data.images import Content, looks_whole, resize_to_cover, upright_size
from difformer.data.listing import find_images, in_words
from difformer.files import expand_user

if TYPE_CHECKING:
    from PIL.Image import Image

ARRAY = "arr_0"
# What reading a damaged archive raises; RuntimeError where it is encrypted, or compressed in a way that is not known.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)
# What was done to images before they were compared, as files of statistics say it.
AS_THEY_ARE = "none"
SCALED = "scaled to cover, bilinear and antialiased, centre cropped"
_READERS = 4
_CONVERT = "give --convert to have such images made 8-bit RGB"


class ImageSet(Protocol):
    """Images of one size.

    Attributes:
        title: where they are.
        size: (h, w) in pixels.
    """

    title: str
    size: tuple[int, int]

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """(B, 3, H, W) uint8, all images in their order."""
        ...


class FileImages:
    """Images that are files, or lie in shards.

    Args:
        source: gives them.
        size: to which they are scaled and cropped; None where they have one size.
        convert: take images that are not 8-bit RGB too.

    Raises:
        ImageError: an image cannot be read, is not 8-bit RGB, or has another size than the first, as far as its
            beginning and end show.
    """

    def __init__(self, source: Source, *, size: int | None = None, convert: bool = False) -> None:
        self.title = source.title
        self._source = source
        self._scaled = size is not None
        self._convert = convert
        self._places = list(range(len(source)))
        found = self._check_headers()
        self.size = found if size is None else sides(as_size("size", size))

    def __len__(self) -> int:
        return len(self._places)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """See `ImageSet`."""
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(self), batch_size):
                places = self._places[start : start + batch_size]
                arrays = list(pool.map(self._pixels, places, self._contents(places)))
                yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _contents(self, places: Sequence[int]) -> Iterator[Content]:
        if self._source.in_order is not None:
            return self._source.in_order(places)
        return map(self._source.content, places)

    def _pixels(self, place: int, content: Content) -> NDArray[np.uint8]:
        """(h, w, 3) of an image."""
        image = self._source.decode(place, content)
        array = _cropped(image, self.size) if self._scaled else np.array(image)
        if array.shape[:2] != self.size:
            raise ImageError(f"{self.title}: {_other_size(self._source.describe(place), array.shape[:2], self.size)}")
        return array

    def _check_headers(self) -> tuple[int, int]:
        """The size of the first; before long work, since reading the ends of images is quick."""
        first: tuple[int, int] | None = None
        contents = zip(self._places, self._contents(self._places), strict=True)
        for place, content in tqdm(contents, "headers", len(self), unit="image", delay=2, disable=None):
            name = f"{self.title}: {self._source.describe(place)}"
            mode, size = _header(content, name)
            # A PNG tells its orientation only when it is decoded, which need not be where turning changes nothing.
            if size[0] != size[1] and not self._scaled:
                size = upright_size(content, name)
            first = first or size
            if mode != "RGB" and not self._convert:
                what = f"{self._source.describe(place)} is of mode {mode}, and 8-bit RGB was expected"
                raise ImageError(f"{self.title}: {what}; {_CONVERT}")
            if size != first and not self._scaled:
                raise ImageError(f"{self.title}: {_other_size(self._source.describe(place), size, first)}")
            ends = None if self._source.ends is None else self._source.ends(place)
            if ends is not None and not looks_whole(ends.head, ends.tail):
                # Decoding tells, and raises where it was cut off.
                self._source.decode(place, content)
        assert first is not None
        return first


class ArrayImages:
    """The images of `arr_0` in an `.npz` file, as guided-diffusion writes samples: (N, H, W, 3) uint8.

    They are read in order and never all at once.

    Args:
        path: the file.
        size: to which they are scaled and cropped; as they are when None.

    Raises:
        ValueError: the file is damaged, or its array is another one.
    """

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        self.title = str(path)
        self._path = path
        with _opened_array(path) as (file, length):
            shape, dtype = _array_header(file, path)
            held = length - file.tell()
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            hint = "" if dtype == np.uint8 else "; of x in [-1, 1] write ((x + 1) * 127.5).clip(0, 255).astype(uint8)"
            raise ValueError(
                f"{path}: {ARRAY} must be (N, H, W, 3) of uint8, RGB images of one size, got {shape} of {dtype}{hint}"
            )
        if held != math.prod(shape):
            raise ValueError(f"{path} is damaged: {ARRAY} holds {held:,} bytes, and {shape} of {dtype} were expected")
        self._shape = shape
        self._scaled = size is not None
        self.size = (shape[1], shape[2]) if size is None else sides(as_size("size", size))
        _check_archive(path)

    def __len__(self) -> int:
        return int(self._shape[0])

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """See `ImageSet`."""
        with _opened_array(self._path) as (file, _):
            _array_header(file, self._path)
            for start in range(0, len(self), batch_size):
                shape = (min(batch_size, len(self) - start), *self._shape[1:])
                pixels = np.frombuffer(file.read(int(np.prod(shape))), np.uint8).reshape(shape)
                if self._scaled:
                    images = require("PIL.Image", "resizing images", install="pillow")
                    pixels = np.stack([_cropped(images.fromarray(one), self.size) for one in pixels])
                yield torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)


def open_images(path: str | Path, *, size: int | None = None, convert: bool = False) -> ImageSet:
    """Opens a set of images; what headers show to be wrong raises here.

    Args:
        path: a folder that is searched with its subfolders; a folder of `.tar` shards without other images, one of
            these or a pattern of them, as the reader `webdataset` takes; or an `.npz` file with `arr_0`.
        size: side to which images are scaled and cropped, so that they may have any; as they are when None.
        convert: take images that are not 8-bit RGB too.

    Raises:
        FileNotFoundError: it is not there, or a folder holds no image.
        ImageError, DataError, ValueError: images or files that are not as expected; the message says what was.
    """
    place = expand_user(path)
    if place.suffix.lower() == ".npz":
        return ArrayImages(_existing(place), size=size)
    if not place.is_dir():
        if ".tar" in place.name.lower():
            return _shards(place.parent, place.name, size, convert)
        raise FileNotFoundError(
            f"{place} is no folder, no .npz file and no .tar shards" if place.exists() else f"there is no {place}"
        )
    found, shard = find_images(place), next(place.glob("*.tar"), None)
    if shard is not None and found.images:
        raise ValueError(
            f"the folder {place} holds both shards, such as {shard.name}, and images, such as "
            f"{found.images[0]}; give the shards as {place / '*.tar'}, or a folder of the images alone"
        )
    if shard is not None:
        return _shards(place, "*.tar", size, convert)
    if not found.images:
        other = f"; its files are {in_words(found.left_out)}" if found.left_out else ""
        raise FileNotFoundError(f"the folder {place} holds no image{other}")
    source = file_source(str(place), place, found.images, [0] * len(found.images), ["image"])
    return FileImages(source, size=size, convert=convert)


def member_names(path: Path) -> set[str]:
    """The names of the arrays in an `.npz` file; ValueError where it is damaged or none, OSError where not there."""
    _existing(path)
    with _reading(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Those arrays of an `.npz` file that it has of some names, checked, without reading the others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or an array is of Python objects.
    """
    _existing(path)
    with _reading(path), zipfile.ZipFile(path) as archive:
        there = set(archive.namelist())
        # Whole members, since zipfile compares the checksum at their end.
        contents = {name: archive.read(f"{name}.npy") for name in names if f"{name}.npy" in there}
        return {name: np.load(io.BytesIO(content), allow_pickle=False) for name, content in contents.items()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what a damaged `.npz` file makes zipfile, the decompressors and numpy raise into ValueError."""
    try:
        yield
    except PermissionError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged or no .npz file: {error}") from error


def _check_archive(path: Path) -> None:
    """Raises ValueError where a member of an `.npz` file does not have its checksum; reads all of it."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path} is damaged: {damaged} does not have its checksum; copy or write it again")


def _shards(root: Path, pattern: str, size: int | None, convert: bool) -> FileImages:
    source = read_source(DataConfig(name="webdataset", root=str(root), first_label=0), pattern)
    return FileImages(source, size=size, convert=convert)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path


@contextmanager
def _opened_array(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The member with the images, open, and its length in bytes."""
    if ARRAY not in (found := member_names(path)):
        raise ValueError(f"{path} has no {ARRAY}, in which images are expected; it has {', '.join(sorted(found))}")
    with ExitStack() as stack:
        with _reading(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            file = stack.enter_context(archive.open(f"{ARRAY}.npy"))
        yield file, archive.getinfo(f"{ARRAY}.npy").file_size


def _array_header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged: {ARRAY} has no header of an array ({error})") from error
    if fortran and len(shape) > 1:
        raise ValueError(f"{path}: {ARRAY} must be in C order; write it again with numpy.ascontiguousarray")
    return shape, dtype


def _header(content: Content, name: str) -> tuple[str, tuple[int, int]]:
    """An image's mode, with its depth where that is not 8 bits, and (h, w) as it is stored; ImageError where it has
    none."""
    if isinstance(content, np.ndarray):
        return "RGB", (content.shape[0], content.shape[1])
    images = require("PIL.Image", "reading images", install="pillow")
    try:
        with images.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            # Pillow opens colours of 16 bits as RGB, and drops the lower 8.
            deep = image.mode == "RGB" and any(";16" in str(tile[3]) for tile in image.tile)
            return f"{image.mode};16" if deep else image.mode, (image.height, image.width)
    except Exception as error:
        raise ImageError(f"{name} cannot be read as an image: {error}") from error


def _other_size(name: str, size: Sequence[int], first: Sequence[int]) -> str:
    shown = f"{size[0]}×{size[1]}, but the first image has {first[0]}×{first[1]}"
    return f"{name} has {shown}; a set has images of one size, or give --size N to have all scaled and cropped to it"


def _cropped(image: "Image", size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w, 3) of an image that is scaled to cover a size and cropped."""
    functional = require("torchvision.transforms.v2.functional", "resizing images", install="torchvision")
    return np.array(functional.center_crop(resize_to_cover(image, size), list(size)))
