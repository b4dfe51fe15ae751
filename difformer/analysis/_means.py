"""Ratios and means where some have no value, which is written as not a number, and None in records."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Their quotient, not a number where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) != 0)


def known_mean(values: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Mean of what is a number; not a number, and without numpy's warning, where nothing is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(axis=axis), known.sum(axis=axis))


def or_none(value: Any) -> float | None:
    """A number as a record has it."""
    return None if np.isnan(value) else float(value)
