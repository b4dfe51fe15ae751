"""Masks as COCO's run-length codes, which pycocotools writes (the extra `dense`); `difformer.rle` reads them."""

from typing import Any

import numpy as np

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
