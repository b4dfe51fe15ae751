"""Checking before the first step whether every image can be read, and its annotation fits it."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from difformer.data.images import ImageError, looks_whole, upright_size
from difformer.data.samples import SampleReader
from difformer.data.source import Source
from difformer.data.spec import CheckImages

_CHUNK = 1024

S = TypeVar("S")
T = TypeVar("T")


def readable(reader: SampleReader, indices: NDArray[np.int64], check: CheckImages) -> NDArray[np.int64]:
    """The places in a split whose images pass a check, with a progress bar when it takes long.

    Args:
        reader: of the split; says what a bad image does.
        indices: places to check.
        check: `decode` reads all images; `headers` those that do not begin and end as they should; `none` none. All
            annotations are read, except with `none`.

    Raises:
        ImageError: an image is bad and not to be skipped, or not one can be read.
        ValueError: an annotation does not fit its image.
    """
    source = reader.source
    if check == "none" or (check == "headers" and source.ends is None and source.annotations is None):
        return indices

    def look(index: int) -> ImageError | None:
        try:
            if check == "decode" or (source.ends is not None and not _looks_whole(source, index)):
                source.read(index)
            if source.annotations is not None:
                source.label(index, upright_size(source.content(index), source.describe(index)))
        except ImageError as error:
            return error
        return None

    places: list[int] = indices.tolist()
    good = []
    for index, error in zip(places, each(look, places, "checking images"), strict=True):
        if error is None:
            good.append(index)
        else:
            reader.skip_or_raise(index, error)
    if not good:
        raise ImageError(f"{source.title}: not one of the {len(indices)} images can be read")
    return np.asarray(good, dtype=np.int64)


def _looks_whole(source: Source, index: int) -> bool:
    """Whether an image begins and ends as it should; False where that cannot be read."""
    try:
        ends = None if source.ends is None else source.ends(index)
    except OSError:
        return False
    return ends is not None and looks_whole(ends.head, ends.tail)


def each(look: Callable[[S], T], items: Sequence[S], title: str, *, unit: str = "image") -> Iterator[T]:
    """A function's result for every item, in order, with a progress bar when it takes long."""
    bar = tqdm(total=len(items), desc=title, unit=unit, delay=2, disable=None)
    # Disks answer several requests at once, and decoders release the interpreter's lock.
    with bar, ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        # In pieces, so that an error or Ctrl-C does not wait for a million images that were asked for.
        for start in range(0, len(items), _CHUNK):
            piece = items[start : start + _CHUNK]
            yield from pool.map(look, piece)
            bar.update(len(piece))
