"""From image files to tensors in [-1, 1], and a number for an image that has none."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer._optional import require
from difformer.config import Size, as_positive_integer, as_size, sides, size_of
from difformer.streams import stable_id

if TYPE_CHECKING:
    from PIL.Image import Image


# Formats that Pillow decodes by itself, without those that need another program (EPS, WMF), containers of numbers or
# films (FITS, HDF5, PFM, MPEG), and rare ones whose suffixes other files have too (.pcd of point clouds, .rgb of raw
# pixels): such files may lie beside images without being images.
_SUFFIXES = (
    ".apng .avif .avifs .blp .bmp .dcx .dds .dib .flc .fli .gif .icb .icns .ico .j2c .j2k .jfif .jp2 .jpc .jpe "
    ".jpeg .jpf .jpg .jpx .msp .pbm .pcx .pgm .png .pnm .ppm .psd .pxr .qoi .sgi .tga .tif .tiff .vda .vst .webp "
    ".xbm .xpm"
)
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())

# How a data set holds an image: its file, the bytes of one, or pixels (H, W, 3) or (H, W) uint8.
Content = Path | bytes | NDArray[np.uint8]

# The last bytes of whole images, by Pillow's name of the format; an MPO is a JPEG with further pictures.
_ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}

# How an image is turned upright, by its EXIF orientation.
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

# Far above what any backbone reads; a mistyped or made up size should not fill the memory.
_LARGEST = 8192

# An image that is longer than this many windows is cut to its middle before it is resized: scaled up, a line of pixels
# would fill the memory.
_LONGEST = 32


class ImageError(ValueError):
    """An image cannot be read; the message names the file and says why."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the backbone's input: scaled to cover a window, centre cropped, pixels to [-1, 1].

    For square results, the short side of the image is resized to that of the window.

    Attributes:
        size: of the result in pixels, its side or (h, w).
        resize: short side of the window that the image covers before cropping, which has the result's proportions; the
            window is the result when None, as published.

    Raises:
        ValueError: sides, of the window too, that are no integers from 1 to 8192, or a crop larger than the resized
            image.
    """

    size: Size
    resize: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size("size", self.size))
        if self.resize is not None:
            object.__setattr__(self, "resize", as_positive_integer("resize", self.resize))
        for name, largest in (("size", max(sides(self.size))), ("resize", self.resize or 0)):
            if largest > _LARGEST:
                raise ValueError(f"{name} must be at most {_LARGEST} pixels, got {largest}")
        if self.resize is not None and self.resize < min(sides(self.size)):
            raise ValueError(f"need 1 <= size <= resize, got size {self.size} and resize {self.resize}")
        window = enlarged(self.size, self.resize)
        if max(sides(window)) > _LARGEST:
            raise ValueError(
                f"resize {self.resize} makes the window of size {self.size} {max(sides(window))} pixels long, and it "
                f"must be at most {_LARGEST}"
            )

    def __call__(self, image: "Image") -> Tensor:
        """Args: an RGB image of any size. Returns (3, h, w) float32 in [-1, 1]."""
        functional = require("torchvision.transforms.v2.functional", "preprocessing images", install="torchvision")
        resized = resize_to_cover(image, enlarged(self.size, self.resize))
        cropped = functional.center_crop(resized, sides(self.size))
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
        raise ImageError(f"{name} cannot be read as an image: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why an image cannot be read, where Pillow's own words name an address in memory, or no remedy."""
    images = require("PIL.Image", "reading images", install="pillow")
    if isinstance(error, images.UnidentifiedImageError):
        return "it is damaged, or of a format that this version of Pillow does not know"
    if isinstance(error, images.DecompressionBombError):
        return f"{error} Scale it down first"
    return str(error)


def upright_size(content: Content, name: str) -> tuple[int, int]:
    """Height and width of an image as `decode_image` gives it, without decoding it where the format allows.

    Raises:
        ImageError: it is missing, or no image.
    """
    try:
        with _opened(content) as image:
            turned = _TURNS.get(_orientation(image), "") in ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
            return image.size if turned else image.size[::-1]
    except Exception as error:
        raise ImageError(f"{name} cannot be read as an image: {_reason(error)}") from error


def looks_whole(head: bytes, tail: bytes) -> bool:
    """Whether an encoded image begins and ends as a whole one does. When it does not, only decoding can tell.

    Args:
        head: enough of its beginning to hold the header.
        tail: its last bytes.
    """
    try:
        with _opened(head) as image:
            ending = _ENDINGS.get(image.format)
    except Exception:
        return False
    return ending is not None and ending in tail


def _opened(content: Content) -> Any:
    images = require("PIL.Image", "reading images", install="pillow")
    if isinstance(content, np.ndarray):
        return images.fromarray(content)
    return images.open(io.BytesIO(content) if isinstance(content, bytes) else content)


def as_rgb(image: "Image") -> "Image":
    """An image as RGB, turned upright as its EXIF orientation says. Pixels of 16 bits keep the upper 8.

    Raises:
        ValueError: pixels whose range is not known: real numbers, or integers of 32 bits.
    """
    images = require("PIL.Image", "reading images", install="pillow")
    # Before anything else reads the pixels: Pillow reports damage only once, and then gives the pixels that it has.
    image.load()
    # PNG and PPM files of 16 bits can come with 32.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not deep:
        raise ValueError(f"its pixels, of mode {image.mode}, have no known range; convert them to 8 or 16 bits")
    converted: Image = images.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if deep else image
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        converted = converted.transpose(images.Transpose[turn])
    upright: Image = converted.convert("RGB")
    # Pillow copies the notes of a file, by which the result would be turned again when it is given on.
    upright.info = {}
    return upright


def _orientation(image: "Image") -> int:
    """The EXIF orientation; 1, upright, where the block is damaged, at which `PIL.ImageOps.exif_transpose` fails."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def enlarged(size: Size, short: int | None) -> Size:
    """A size of about the same proportions whose short side has a length; the same size when None."""
    height, width = sides(size)
    return size if short is None else size_of(*(side * short // min(height, width) for side in (height, width)))


def resize_to_cover(image: "Image", window: Size) -> "Image":
    """An image as large as it must be to cover a window, bilinear and antialiased, and its proportions kept.

    It is as high or as wide as the window, and at least as large in the other direction: for a square window, its short
    side is the window's. If it would be longer than 32 windows, only the middle 32 are used.
    """
    functional = require("torchvision.transforms.v2.functional", "preprocessing images", install="torchvision")
    height, width = sides(window)
    highest = max(1, _LONGEST * image.width * height // width)
    widest = max(1, _LONGEST * image.height * width // height)
    if image.height > highest or image.width > widest:
        image = functional.center_crop(image, [min(image.height, highest), min(image.width, widest)])
    if height * image.width >= width * image.height:
        covering = [height, image.width * height // image.height]
    else:
        covering = [image.height * width // image.width, width]
    resized: Image = functional.resize(image, covering)
    return resized


def content_id(image: Tensor) -> int:
    """A stable number for an image that has none: the first 63 bits of the SHA-256 of its pixels.

    Args:
        image: (3, H, W) in [-1, 1]. Pixels count to 8 bits, so that the number does not depend on the type's rounding.
    """
    pixels = ((image.detach().cpu().float() + 1) * 127.5).round() / 127.5 - 1
    return stable_id(pixels.contiguous().numpy().tobytes())
