"""Looking at images before the first step."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.data.images import ImageError, check_header
from difformer.data.samples import SampleReader
from difformer.data.spec import CheckImages

_CHUNK = 1024


def readable(reader: SampleReader, indices: NDArray[np.int64], check: CheckImages) -> NDArray[np.int64]:
    """The places in a split whose images pass a check, with a progress bar when it takes long.

    Args:
        reader: of the split; says what a bad image does.
        indices: places to check.
        check: `headers` looks at images that are files of their own only; `decode` at all of them; `none` at none.

    Raises:
        ImageError: an image is bad and not to be skipped, or not one can be read.
    """
    if check == "none" or (check == "headers" and not reader.source.on_disk):
        return indices
    bad = set()
    for index, error in _errors(reader, indices, decode=check == "decode"):
        if reader.on_bad_image == "raise":
            raise error
        reader.skip(index, error)
        bad.add(index)
    if len(bad) == len(indices):
        raise ImageError(f"{reader.source.title}: not one of the {len(indices)} images can be read")
    return np.asarray([index for index in indices.tolist() if index not in bad], dtype=np.int64)


def _errors(reader: SampleReader, indices: NDArray[np.int64], *, decode: bool) -> Iterator[tuple[int, ImageError]]:
    source = reader.source

    def look(index: int) -> ImageError | None:
        try:
            if decode:
                source.read(index)
            else:
                content = source.content(index)
                check_header(content, str(content))
        except ImageError as error:
            return error
        return None

    bar = require("tqdm", "the progress bar").tqdm(
        total=len(indices), desc="checking images", unit="image", delay=2, disable=None
    )
    # Disks answer several requests at once, and decoders leave the interpreter alone.
    with bar, ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        # In pieces, so that an error or Ctrl-C does not wait for a million images that were asked for.
        for start in range(0, len(indices), _CHUNK):
            piece = indices[start : start + _CHUNK].tolist()
            for index, error in zip(piece, pool.map(look, piece), strict=True):
                if error is not None:
                    yield index, error
            bar.update(len(piece))
