"""The type of features, and its name in files."""

from typing import Literal

import torch

DtypeName = Literal["float32", "bfloat16", "float16"]


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating-point type given as such or by its name, such as "float32".

    Raises:
        ValueError: it is something else.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, such as torch.float32 or 'bfloat16', got {dtype!r}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """The name from which `as_dtype` gives the type back."""
    return str(dtype).removeprefix("torch.")
