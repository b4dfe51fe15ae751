"""Masks as COCO's run-length codes, which pycocotools writes (the extra `dense`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.analysis._inputs import Array, as_tensor


def encode_rle(mask: Array) -> dict[str, Any]:
    """A mask as COCO's result files have it.

    Args:
        mask: (H, W) truth values, or integers that are 0 or 1.

    Returns:
        `size` [H, W], the mask's own, and `counts`, text.

    Raises:
        ValueError: another shape, type or value.
        ImportError: pycocotools is missing.
    """
    pixels = as_tensor("mask", mask).cpu().numpy()
    if pixels.ndim != 2 or not pixels.size:
        raise ValueError(f"mask must be of shape (H, W), H and W at least 1, got {pixels.shape}")
    if pixels.dtype.kind == "f" or (pixels.dtype != bool and not np.isin(pixels, (0, 1)).all()):
        raise ValueError(f"mask must be truth values or 0 and 1, got {pixels.dtype}; compare probabilities with 0.5")
    library = require("pycocotools.mask", "encoding masks", install="pycocotools")
    found = library.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": list(pixels.shape), "counts": found["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any], size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """A mask from COCO's run-length code.

    Args:
        rle: `size` [H, W] and `counts`: text or bytes as pycocotools writes them, or the runs themselves, down the
            columns, beginning with that of zeros.
        size: (h, w) that it must have, its image's.

    Returns:
        (H, W).

    Raises:
        ValueError: another size, or runs that do not fill it.
    """
    check_rle("the mask", rle, size)
    runs, (height, width) = _runs("the mask", rle["counts"]), rle["size"]
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def check_rle(name: str, rle: Mapping[str, Any], size: tuple[int, int] | None = None) -> None:
    """Refuses a code whose runs do not fill its size.

    Args:
        name: whose mask it is, for errors.
        rle: as for `decode_rle`.
        size: (h, w) that it must have.

    Raises:
        ValueError: another size, or runs that do not fill it.
    """
    found = tuple(rle["size"])
    if len(found) != 2 or min(found) < 1 or (size is not None and tuple(size) != found):
        wanted = "of [H, W]" if size is None else f"of its image's size, {size[0]} × {size[1]} (h × w)"
        raise ValueError(f"{name} must be a run-length code {wanted}, got size {list(rle['size'])}")
    runs = _runs(name, rle["counts"])
    if any(run < 0 for run in runs) or sum(runs) != found[0] * found[1]:
        raise ValueError(
            f"{name} must be a run-length code whose runs fill {found[0]} × {found[1]} pixels, got {len(runs)} runs "
            f"of {sum(runs)} pixels together"
        )


def rle_area(rle: Mapping[str, Any]) -> int:
    """How many pixels a run-length code covers.

    Args and raises: as `decode_rle`, whatever the size.
    """
    return sum(_runs("the mask", rle["counts"])[1::2])


def _runs(name: str, counts: str | bytes | Sequence[int]) -> list[int]:
    """The runs of a code. As text they are numbers in groups of five bits, the sixth set where another group follows,
    the fifth of the last being the sign; from the fourth run on, the difference from the run two before (maskApi.c,
    rleFrString)."""
    if isinstance(counts, list | tuple):
        return list(counts)
    text = counts.encode() if isinstance(counts, str) else bytes(counts)
    runs: list[int] = []
    value = shift = 0
    for byte in text:
        group = byte - 48
        if not 0 <= group < 64:
            raise ValueError(f"{name} must be a run-length code of characters from '0' to 'o', got {chr(byte)!r}")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            value -= (group >> 4 & 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f"{name} must be a run-length code that ends with its last number, got one that is cut off")
    return runs
