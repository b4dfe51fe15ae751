"""Looking at every image before the first step: whether it can be read, and which it is."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.data.images import Content, ImageError, looks_whole
from difformer.data.samples import SampleReader
from difformer.data.source import Source, add_numbers
from difformer.data.spec import CheckImages

_CHUNK = 1024

T = TypeVar("T")


def readable(reader: SampleReader, indices: NDArray[np.int64], check: CheckImages) -> NDArray[np.int64]:
    """The places in a split whose images pass a check, with a progress bar when it takes long.

    Args:
        reader: of the split; says what a bad image does.
        indices: places to check.
        check: `decode` reads all images; `headers` those that do not begin and end as they should; `none` none.

    Raises:
        ImageError: an image is bad and not to be skipped, or not one can be read.
    """
    source = reader.source
    if check == "none" or (check == "headers" and source.ends is None):
        return indices

    def look(index: int) -> ImageError | None:
        try:
            if check == "decode" or not _looks_whole(source, index):
                source.read(index)
        except ImageError as error:
            return error
        return None

    good = []
    for index, error in zip(indices.tolist(), _each(look, indices, "checking images"), strict=True):
        if error is None:
            good.append(index)
        else:
            reader.skip_or_raise(index, error)
    if not good:
        raise ImageError(f"{source.title}: not one of the {len(indices)} images can be read")
    return np.asarray(good, dtype=np.int64)


def samples_digest(source: Source, indices: NDArray[np.int64]) -> str:
    """Hexadecimal SHA-256 of samples in their order: of the split's digest, and of their ids, labels and images.

    Of an encoded image, its size and both ends stand for the whole, where that takes less than reading it.

    Args:
        source: the full split.
        indices: places in it.

    Raises:
        ImageError: an image cannot be read.
    """

    def look(index: int) -> bytes:
        try:
            if source.ends is not None:
                head, tail, size = source.ends(index)
                return hashlib.sha256(b"%d %d %b%b" % (size, len(head), head, tail)).digest()
            return hashlib.sha256(_content_bytes(source.content(index))).digest()
        except OSError as error:
            raise ImageError(f"{source.title}: {source.describe(index)} cannot be read: {error}") from error

    digest = hashlib.sha256(source.digest.encode())
    add_numbers(digest, source.ids[indices])
    add_numbers(digest, source.labels[indices])
    for image in _each(look, indices, "identifying images"):
        digest.update(image)
    return digest.hexdigest()


def _looks_whole(source: Source, index: int) -> bool:
    try:
        ends = None if source.ends is None else source.ends(index)
    except OSError:
        return False
    return ends is not None and looks_whole(ends.head, ends.tail)


def _content_bytes(content: Content) -> bytes:
    if isinstance(content, np.ndarray):
        return str(content.shape).encode() + content.tobytes()
    return content if isinstance(content, bytes) else content.read_bytes()


def _each(look: Callable[[int], T], indices: NDArray[np.int64], title: str) -> Iterator[T]:
    """What a function says of every index, in order, with a progress bar when it takes long."""
    bar = require("tqdm", "the progress bar").tqdm(total=len(indices), desc=title, unit="image", delay=2, disable=None)
    # Disks answer several requests at once, and decoders leave the interpreter alone.
    with bar, ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        # In pieces, so that an error or Ctrl-C does not wait for a million images that were asked for.
        for start in range(0, len(indices), _CHUNK):
            piece = indices[start : start + _CHUNK].tolist()
            yield from pool.map(look, piece)
            bar.update(len(piece))
