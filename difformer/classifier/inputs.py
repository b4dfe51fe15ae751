"""Images in the forms that users give them, and batches of them."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difformer.data import as_rgb, read_image
from difformer.data.images import decode_image

ImageLike = Any  # a path, a file's bytes, a PIL image, an array (H, W, 3) uint8 or a tensor (3, H, W) in [-1, 1]


def as_picture(image: ImageLike) -> Any:
    """An upright RGB PIL image from any kind of image that may be given, except tensors.

    Raises:
        ImageError, ValueError: as `DiffusionClassifier.preprocess`.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, bytes):
        return decode_image(image, "what was given as bytes")
    array = isinstance(image, np.ndarray)
    if array and image.dtype == np.uint8 and image.ndim >= 2 and image.shape[2:] in ((), (3,)) and image.size:
        return decode_image(image, "the array")
    if not hasattr(image, "getexif"):
        raise ValueError(
            "an image must be a path, the bytes of a file, a PIL image, an array (H, W, 3) of uint8 or a tensor "
            f"(3, H, W) in [-1, 1], got {f'{image.dtype} of shape {image.shape}' if array else type(image).__name__}"
        )
    return as_rgb(image)


def batches_of(images: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Stacks of consecutive images of one shape, at most `size` in each; images are read only when needed."""
    batch: list[Tensor] = []
    for image in images:
        if batch and image.shape != batch[0].shape:
            yield torch.stack(batch)
            batch = []
        batch.append(image)
        if len(batch) == size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)
