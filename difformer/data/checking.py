"""Checking before the first step whether every image can be read."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from difformer.data.images import ImageError, looks_whole
from difformer.data.samples import SampleReader
from difformer.data.spec import CheckImages

_CHUNK = 1024

S = TypeVar("S")
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

    ends = source.ends if check == "headers" else None

    def look(index: int) -> ImageError | None:
        try:
            # An image that does not look whole, or whose ends cannot be read, is read in full.
            with contextlib.suppress(OSError):
                found = None if ends is None else ends(index)
                if found is not None and looks_whole(found.head, found.tail):
                    return None
            source.read(index)
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
