"""What extractors check about the images they are given."""

import warnings
from typing import Any

import torch
from torch import Tensor

# Resizing can take pictures a little outside [-1, 1], but none as far as the limit.
_OVERSHOOT = 1.02
_LIMIT = 2.0


class ImageCheck:
    """Refuses what cannot be a batch of pictures in [-1, 1], and warns once about doubtful values."""

    def __init__(self) -> None:
        self._looked = False

    def __call__(self, images: Any, *, training: bool) -> None:
        """Checks a batch.

        Args:
            images: should be (B, C, H, W) floating-point in [-1, 1].
            training: whether the batch is one of many to learn from. On a GPU the check waits for the computation, so
                only the first of these is checked there.

        Raises:
            ValueError: another type, shape, dtype or range; the message says what to do.
        """
        check_batch(images)
        if images.is_cpu or not training or not self._looked:
            check_range(images)
            self._looked = True


def check_sides(images: Tensor, multiple: int) -> None:
    """Raises ValueError where a side of images (B, C, H, W) is no multiple of what a backbone requires."""
    height, width = images.shape[2:]
    check_multiples(height, width, multiple)


def check_multiples(height: int, width: int, multiple: int) -> None:
    """Raises ValueError where one of these sides is no multiple of what a backbone requires."""
    if height % multiple or width % multiple:
        raise ValueError(f"image sides must be multiples of {multiple}, got {height}×{width}; resize or pad")


def check_batch(images: Any) -> None:
    """Raises ValueError where images are no floating-point tensor (B, C, H, W)."""
    expected = "images must be a floating-point tensor (B, 3, H, W) in [-1, 1]"
    if not isinstance(images, Tensor):
        raise ValueError(
            f"{expected}, got {type(images).__name__}; a classifier's predict takes files and PIL images, and "
            "difformer.data.Preprocessing(size) makes tensors of them: "
            "torch.stack([Preprocessing(size)(read_image(path)) for path in paths])"
        )
    shape = tuple(images.shape)
    if images.ndim == 3:
        raise ValueError(f"{expected}, got shape {shape}; for one image, give images[None]")
    if images.ndim != 4:
        raise ValueError(f"{expected}, got shape {shape}")
    if not images.is_floating_point():
        raise ValueError(f"{expected}, got {images.dtype}; for pixels in 0 … 255, give images.float() / 127.5 - 1")
    if shape[1] not in (1, 3) and shape[3] == 3:
        raise ValueError(f"{expected}, got shape {shape}; with channels last, give images.permute(0, 3, 1, 2)")


def check_range(images: Tensor) -> None:
    """Refuses images that cannot be pictures in [-1, 1], and warns once about doubtful ones.

    Args:
        images: floating-point, of any shape. Empty tensors, and the placeholders of compilers, are not checked.

    Raises:
        ValueError: a value that is not finite, or far outside.
    """
    placeholder = type(images) is not Tensor or images.is_meta or torch.compiler.is_compiling()
    if placeholder or not images.numel():
        return
    low, high = (float(end) for end in images.detach().aminmax())
    if not -_LIMIT <= low <= high <= _LIMIT:
        remedy = "images / 127.5 - 1" if low >= 0 else "(images * std + mean) * 2 - 1, if they were normalised"
        what = f"reach from {low:.4g} to {high:.4g}; give {remedy}" if low <= high else "hold values that are NaN"
        raise ValueError(f"images must be pictures in [-1, 1], but these {what}")
    # The warnings hold no numbers, so that Python shows each only once.
    if low >= 0 < high:
        pixels = (images.detach().float() + 1) * 127.5
        # Bright pictures in [-1, 1] have the values of 8-bit pixels there; images in [0, 1] do not.
        if (pixels - pixels.round()).abs().max() >= 0.25:
            warnings.warn(
                "no pixel of these images is below 0; if they lie in [0, 1], give images * 2 - 1", stacklevel=1
            )
            return
    if max(-low, high) > _OVERSHOOT:
        warnings.warn(
            "these images reach beyond [-1, 1]; if they were normalised, give (images * std + mean) * 2 - 1",
            stacklevel=1,
        )
