"""Checked features, logits, labels, maps of classes and points from tensors or arrays."""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = Tensor | NDArray[Any]


def as_matrix(name: str, values: Array, *, width: int | None = None) -> Tensor:
    """Floating-point rows, one an image, as a tensor that shares their memory where it can.

    Args:
        name: of the values, for errors; a plural.
        values: (N, D), of any floating-point type, with N and D at least 1.
        width: the D expected, where it is known.

    Raises:
        ValueError: another type, shape or dtype, or a value that is not finite.
    """
    matrix = as_tensor(name, values).detach()
    if not matrix.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating-point numbers, got {matrix.dtype}")
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"{name} must be of shape (N, D), both at least 1, got {tuple(matrix.shape)}")
    if width not in (None, matrix.shape[1]):
        raise ValueError(f"{name} must have {width} columns, got shape {tuple(matrix.shape)}")
    finite = torch.isfinite(matrix)
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        count = int((~finite).any(dim=1).sum())
        raise ValueError(
            f"{name} must be finite: {count} of {len(matrix)} rows are not; the first is row {row}, "
            f"with {matrix[row, column].item()} in column {column}"
        )
    return matrix


def as_labels(labels: Array, count: int, num_classes: int) -> Tensor:
    """Class numbers, one an image.

    Args:
        labels: (count,) integers of any type, in [0, num_classes).
        count: of images.
        num_classes: at least 1.

    Returns:
        (count,) int64, on the labels' device.

    Raises:
        ValueError: another type, shape, dtype or range.
    """
    tensor = as_tensor("labels", labels)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {tensor.dtype}")
    if tensor.shape != (count,):
        raise ValueError(f"labels must be {count} integers, one an image, got shape {tuple(tensor.shape)}")
    # Unsigned numbers that are too large become negative, and are refused with those.
    tensor = tensor.long()
    outside = (tensor < 0) | (tensor >= num_classes)
    if outside.any():
        place = int(outside.nonzero()[0])
        raise ValueError(f"labels must lie in [0, {num_classes}), got {int(tensor[place])} for image {place}")
    return tensor


def as_tensor(name: str, values: Array) -> Tensor:
    """Numbers or truth values of any shape as a tensor that shares their memory where it can.

    Args:
        name: of the values, for errors.
        values: a tensor or an array.

    Raises:
        ValueError: another type, or an array of something else.
    """
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{name} must be a torch tensor or a numpy array of numbers, got {found}")
    # torch takes neither reversed arrays nor another byte order, and warns of read-only ones; only those are copied.
    array = np.require(values, values.dtype.newbyteorder("="), ["C", "W"])
    # numpy does not mind the direction of an axis of length 0 or 1.
    return torch.from_numpy(array.copy() if min(array.strides, default=0) < 0 else array)


def as_scores(name: str, scores: Array) -> NDArray[np.float64]:
    """Numbers or truth values, one an image, as a float64 array.

    Args:
        name: of the scores, for errors; a plural.
        scores: (N,) finite, N at least 1.

    Raises:
        ValueError: another type or shape, or a value that is not finite.
    """
    values = as_tensor(name, scores).detach().cpu().double().numpy()
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be of shape (N,), N at least 1, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}")
    return values


def as_class_maps(predicted: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Maps of class numbers that belong together; their values are not looked at.

    Args:
        predicted, labels: (B, H, W) integers of any type, H and W at least 1.

    Raises:
        ValueError: another type, shape or dtype, or two shapes.
    """
    found = []
    for name, maps in (("labels", labels), ("predicted", predicted)):
        tensor = as_tensor(name, maps)
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {tensor.dtype}; of logits, take argmax(dim=1)")
        if tensor.ndim != 3 or not tensor.shape[1] * tensor.shape[2]:
            raise ValueError(f"{name} must be of shape (B, H, W), H and W at least 1, got {tuple(tensor.shape)}")
        found.append(tensor)
    truth, other = found
    if truth.shape != other.shape:
        raise ValueError(
            f"predicted and labels must be of one shape, got {tuple(other.shape)} and {tuple(truth.shape)}; "
            "predict at the labels' size"
        )
    return other, truth


def as_numbers(name: str, values: Array, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """Numbers as a float64 array; whether they are finite is not looked at.

    Args:
        name: of the values, for errors; a plural.
        values: of that shape.
        shape: None where any length is right.

    Raises:
        ValueError: another type or shape.
    """
    array = as_tensor(name, values).detach().cpu().double().numpy()
    if array.ndim != len(shape) or any(want not in (None, side) for want, side in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"{name} must be of shape ({wanted}), got {array.shape}")
    return array
