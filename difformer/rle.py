"""COCO's run-length codes of masks, read and checked; pycocotools reads a code that does not fill its mask, too, and
leaves the rest as the memory has it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of one number of a code's text: masks have fewer pixels, and reading more would take quadratic time.
_MOST_BITS = 40


def decode_rle(rle: Mapping[str, Any], size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """A mask from COCO's run-length code.

    Args:
        rle: `size` [H, W] and `counts`: text or bytes as pycocotools writes them, or a list of the runs themselves,
            down the columns, beginning with that of zeros.
        size: (h, w) that it must have, its image's.

    Returns:
        (H, W).

    Raises:
        ValueError: it is no such code, has another size, or its runs do not fill it.
    """
    runs, (height, width) = run_lengths(rle, size), rle["size"]
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def run_lengths(rle: Mapping[str, Any], size: tuple[int, int] | None = None, *, name: str = "the mask") -> list[int]:
    """The runs of a code, which fill its size: of zeros, ones, zeros …

    Args:
        rle, size: as for `decode_rle`.
        name: whose mask it is, for errors.

    Raises:
        ValueError: as `decode_rle`.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"{name} must be a run-length code, a mapping with size and counts, got {rle!r:.80}")
    found = rle["size"]
    fits = isinstance(found, list | tuple) and len(found) == 2 and all(type(side) is int and side > 0 for side in found)
    if not fits or (size is not None and tuple(size) != tuple(found)):
        wanted = "of [H, W]" if size is None else f"of its image's size, {size[0]} × {size[1]} (h × w)"
        raise ValueError(f"{name} must be a run-length code {wanted}, got size {found!r:.80}")
    runs = _runs(name, rle["counts"])
    if sum(runs) != found[0] * found[1] or min(runs) < 0:
        raise ValueError(
            f"{name} must be a run-length code whose runs fill {found[0]} × {found[1]} pixels, got {len(runs)} runs "
            f"of {sum(runs)} pixels together"
        )
    return runs


def _runs(name: str, counts: Any) -> list[int]:
    """The numbers of a code. As text they are in groups of five bits, the sixth set where another group follows, the
    fifth of the last being the sign; from the fourth run on, the difference from the run two before (maskApi.c,
    rleFrString)."""
    if isinstance(counts, list | tuple) and all(type(run) is int for run in counts):
        return list(counts)
    if not isinstance(counts, str | bytes):
        raise ValueError(f"{name} must be a run-length code of text, bytes or a list of integers, got {counts!r:.80}")
    runs: list[int] = []
    value = shift = 0
    for character in counts if isinstance(counts, str) else counts.decode("latin-1"):
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"{name} must be a run-length code of characters from '0' to 'o', got {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if shift > _MOST_BITS:
            raise ValueError(
                f"{name} must be a run-length code of numbers of {_MOST_BITS} bits at most, got a longer one"
            )
        if not group & 32:
            value -= (group >> 4 & 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f"{name} must be a run-length code that ends with its last number, got one that is cut off")
    return runs
