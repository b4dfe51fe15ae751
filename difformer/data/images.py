"""From image files to tensors in [-1, 1], and a number for an image that has none."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer._optional import require

if TYPE_CHECKING:
    from PIL.Image import Image


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jfif"})

# What a data set holds of an image: its file, the bytes of one, or pixels (H, W, 3) or (H, W) uint8.
Content = Path | bytes | NDArray[np.uint8]


class ImageError(ValueError):
    """An image cannot be read; the message names the file and says why."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the backbone's input: short side resized, centre cropped, pixels to [-1, 1].

    Attributes:
        size: side of the result in pixels.
        resize: the short side before cropping; `size` when None, as published.

    Raises:
        ValueError: a size below 1, or a crop larger than the resized image.
    """

    size: int
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or (self.resize is not None and self.resize < self.size):
            raise ValueError(f"need 1 <= size <= resize, got size {self.size} and resize {self.resize}")

    def __call__(self, image: "Image") -> Tensor:
        """Args: an RGB image of any size. Returns (3, size, size) float32 in [-1, 1]."""
        functional = require("torchvision.transforms.v2.functional", "preprocessing images", install="torchvision")
        resized = functional.resize(image, [self.resize or self.size])
        cropped = functional.center_crop(resized, [self.size, self.size])
        pixels: Tensor = functional.pil_to_tensor(cropped)
        return pixels.float() / 127.5 - 1


def read_image(path: str | Path) -> "Image":
    """Reads an image file as RGB, turned upright.

    Raises:
        ImageError: the file is missing, unreadable, truncated or no image.
    """
    return decode_image(Path(path), str(path))


def decode_image(content: Content, name: str) -> "Image":
    """An image as RGB, turned upright.

    Args:
        content: a file, the bytes of one, or pixels.
        name: what errors call it.

    Raises:
        ImageError: it is missing, unreadable, truncated or no image.
    """
    # Damaged files make the decoders raise errors of many kinds.
    try:
        with _opened(content) as image:
            return as_rgb(image)
    except Exception as error:
        raise ImageError(f"{name} cannot be read as an image: {error}") from error


def check_header(content: Content, name: str) -> None:
    """Opens an image without decoding its pixels.

    Raises:
        ImageError: it is missing, or does not begin like an image.
    """
    try:
        with _opened(content):
            pass
    except Exception as error:
        raise ImageError(f"{name} cannot be read as an image: {error}") from error


def _opened(content: Content) -> Any:
    images = require("PIL.Image", "reading images", install="pillow")
    if isinstance(content, np.ndarray):
        return images.fromarray(content)
    return images.open(io.BytesIO(content) if isinstance(content, bytes) else content)


def as_rgb(image: "Image") -> "Image":
    """An image as RGB, turned upright as its EXIF orientation says."""
    upright = require("PIL.ImageOps", "reading images", install="pillow").exif_transpose(image)
    converted: Image = upright.convert("RGB")
    return converted


def content_id(image: Tensor) -> int:
    """A stable number for an image that has none: the first 63 bits of the SHA-256 of its pixels.

    Args:
        image: (3, H, W) as it goes into the backbone.
    """
    return stable_id(image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def stable_id(content: bytes) -> int:
    """The first 63 bits of a SHA-256: a number in [0, 2**63) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1
