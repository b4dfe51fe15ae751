"""Transforms of an image and its target together, each a pure function of these and of the sample's own generator."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from logging import getLogger
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difformer._optional import require
from difformer.config import Size, as_positive_integer, as_size, check_choice, check_range, sides
from difformer.data.spec import DataConfig, Fit
from difformer.data.targets import Mask, Origin, Points, Target
from difformer.maps import IGNORE
from difformer.registry import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

# An RGB image, its target and the sample's generator, to (3, h, w) float32 in [-1, 1], the target of that, and where it
# comes from, in evaluation.
JointTransform = Callable[["Image", Target, np.random.Generator], tuple[Tensor, Target, Origin | None]]

_log = getLogger(__name__)

AUGMENTATIONS = ("none", "flip", "jitter", "published")

# Crops that are tried until no class fills one, as in mmsegmentation's RandomCrop.
_TRIES = 10
# Far above what is read, so that a line of pixels, scaled up, does not fill the memory.
_LONGEST = 8192


@dataclass(frozen=True)
class Whole:
    """What evaluation sees: all of the image, or of its object.

    Attributes:
        size: of the input in pixels, its side or (h, w).
        fit: `stretch` scales height and width to `size`, each by its own factor; `pad` scales both by one until the
            image fits into `size`, and pads it at the right and lower edge with grey; `keep` leaves the image as large
            as it is, for sliding windows, or scales it to the short side `resize`.
        resize: short side, of `keep`.
        box_scale: of the target's box, what is cropped out, see `crop_to_object`.
        flip: whether it is mirrored at random.

    Raises:
        ValueError: a value out of range.
    """

    size: Size
    fit: Fit = "stretch"
    resize: int | None = None
    box_scale: float | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size("size", self.size))
        check_choice("fit", self.fit, get_args(Fit))
        if self.resize is not None:
            object.__setattr__(self, "resize", as_positive_integer("resize", self.resize))
        if self.box_scale is not None:
            check_range("box_scale", self.box_scale, lambda scale: scale > 0, "above 0")

    def __call__(
        self, image: "Image", target: Target, rng: np.random.Generator
    ) -> tuple[Tensor, Target, Origin | None]:
        original = target
        image, target, start = crop_to_object(image, target, self.size, self.box_scale)
        part, shown = target.size, self._shown(*target.size)
        pixels = _pixels(_functional().resize(image, list(shown)))
        target = target.resize(*shown)
        if self.fit == "pad":
            pixels, target = _padded(pixels, target, sides(self.size))
        if not self.flip:
            return pixels, target, Origin(original, part, shown, start)
        return (pixels.flip(2), target.flip(), None) if rng.random() < 0.5 else (pixels, target, None)

    def read(self, image: "Image") -> tuple[Tensor, Origin]:
        """An image without annotation, for predictions.

        Args:
            image: RGB.

        Returns:
            (3, h, w) float32 in [-1, 1], and how predictions go back to the image.
        """
        nothing = no_points((image.height, image.width))
        pixels, _, origin = replace(self, flip=False)(image, nothing, np.random.default_rng(0))
        assert origin is not None
        return pixels, origin

    def _shown(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is scaled to."""
        if self.fit == "stretch":
            return sides(self.size)
        if self.fit == "pad":
            return _scaled(height, width, min(s / o for s, o in zip(sides(self.size), (height, width), strict=True)))
        return (height, width) if self.resize is None else _scaled(height, width, self.resize / min(height, width))


@dataclass(frozen=True)
class Jittered:
    """Scale jitter, a crop, a random horizontal flip, and photometric distortion.

    The image is scaled until it covers a window of the proportions of `size` whose short side is `resize`, times a
    number drawn uniformly, and a part of `size` is cut out; what lacks is padded at the right and lower edge, with grey
    and pixels that are ignored. This is the order of mmsegmentation's and Detectron2's usual pipelines. Points are not
    mirrored where it is not known which ones change places.

    Attributes:
        size: of the input in pixels, its side or (h, w).
        resize: short side of the window; that of `size` when None.
        scales: smallest and largest number to draw.
        category_ratio: share of a crop's pixels that one class may fill; up to ten crops are tried. 1 takes the first.
        photometric: whether colours are distorted, see `distort`.
        box_scale: of the target's box, what is cropped out beforehand, see `crop_to_object`.
    """

    size: Size
    resize: int | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    category_ratio: float = 0.75
    photometric: bool = True
    box_scale: float | None = None

    def __call__(
        self, image: "Image", target: Target, rng: np.random.Generator
    ) -> tuple[Tensor, Target, Origin | None]:
        image, target, _ = crop_to_object(image, target, self.size, self.box_scale)
        window = sides(self.size)
        covering = max(side / own for side, own in zip(window, target.size, strict=True))
        enlarged = 1 if self.resize is None else self.resize / min(window)
        shown = _scaled(*target.size, covering * enlarged * rng.uniform(*self.scales))
        functional = _functional()
        image, target = functional.resize(image, list(shown)), target.resize(*shown)
        part = self._crop(target, rng)
        image, target = functional.crop(image, *part), target.crop(*part)
        if rng.random() < 0.5 and _has_mirror(target):
            image, target = functional.horizontal_flip(image), target.flip()
        pixels = _pixels(image)
        return *_padded(distort(pixels, rng) if self.photometric else pixels, target, window), None

    def _crop(self, target: Target, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a part."""
        height, width = (min(side, own) for side, own in zip(sides(self.size), target.size, strict=True))
        for _ in range(_TRIES):
            top = int(rng.integers(0, target.size[0] - height + 1))
            left = int(rng.integers(0, target.size[1] - width + 1))
            part = top, left, height, width
            if not isinstance(target, Mask) or _mixed(target.crop(*part), self.category_ratio):
                break
        return part


def no_points(size: tuple[int, int]) -> Points:
    """The target of an image (H, W) of which nothing is known."""
    return Points(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool), size)


def create_joint_transform(config: DataConfig, augment: bool) -> Whole | Jittered:
    """The transform of images and their targets that a configuration asks for.

    Args:
        config: its `augmentation` is `none` (the evaluation transform), `flip` (and a random horizontal flip), `jitter`
            (scale jitter, crop, flip), or `published` (the same, and photometric distortion).
        augment: that of training, else that of evaluation.

    Raises:
        ValueError: an unknown augmentation, or random erasing.
    """
    name = config.augmentation if augment else "none"
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise ValueError(
            f"the augmentation of masks, boxes and points must be one of {known}, got {name!r}; "
            f"{did_you_mean(name, AUGMENTATIONS)}"
        )
    if augment and config.random_erasing:
        raise ValueError("random_erasing is for classes; leave it out with masks, boxes and points")
    if name in ("none", "flip"):
        return Whole(config.size, config.fit, config.resize, config.box_scale, flip=name == "flip")
    return Jittered(
        config.size, config.resize, config.scales, config.category_ratio, name == "published", config.box_scale
    )


def check_mirrored(transform: Any, target: Target, title: str) -> None:
    """Says in the log where images are not mirrored, since it is not known which points change places.

    Raises:
        ValueError: being mirrored is all that was asked for.
    """
    if _has_mirror(target):
        return
    hint = "set flip_pairs to the points that change places in a mirrored image, {} where none do"
    if isinstance(transform, Whole) and transform.flip:
        raise ValueError(f"{title}: the augmentation flip needs to know left from right; {hint}")
    if isinstance(transform, Jittered):
        _log.warning("%s: images are not mirrored, since no names of points differ in left and right; %s", title, hint)


def crop_to_object(
    image: "Image", target: Target, size: Size, scale: float | None
) -> tuple["Image", Target, tuple[int, int]]:
    """The part of an image around the object that has the points, in the proportions of the input; black beyond edges.

    Args:
        image: RGB.
        target: of points with a box, else it is left as it is.
        size: of the input.
        scale: how much longer the part is than the box, in the direction that decides.

    Returns:
        Image, target, and where in the image the part begins: top, left.
    """
    if not isinstance(target, Points) or target.box is None or scale is None:
        return image, target, (0, 0)
    x1, y1, x2, y2 = target.box
    height, width = sides(size)
    unit = max((y2 - y1) / height, (x2 - x1) / width) * scale
    height, width = max(1, round(unit * height)), max(1, round(unit * width))
    top, left = round((y1 + y2 - height) / 2), round((x1 + x2 - width) / 2)
    return image.crop((left, top, left + width, top + height)), target.crop(top, left, height, width), (top, left)


def distort(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Photometric distortion as of Liu et al. 2016 (SSD), with the ranges of torchvision's RandomPhotometricDistort;
    channels are not permuted. Each of brightness, contrast (before or after the colours), saturation and hue changes
    with probability 1/2.

    Args:
        pixels: (3, h, w) float32 in [-1, 1].
        rng: of the sample.
    """
    functional = _functional()
    does, early = rng.random(4) < 0.5, rng.random() < 0.5
    brightness, contrast, saturation, hue = (
        float(rng.uniform(*ends)) for ends in ((0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05))
    )
    steps = [
        (does[0], functional.adjust_brightness, brightness),
        (does[1] and early, functional.adjust_contrast, contrast),
        (does[2], functional.adjust_saturation, saturation),
        (does[3], functional.adjust_hue, hue),
        (does[1] and not early, functional.adjust_contrast, contrast),
    ]
    pixels = (pixels + 1) / 2
    for chosen, adjust, value in steps:
        pixels = adjust(pixels, value) if chosen else pixels
    return pixels * 2 - 1


def _has_mirror(target: Target) -> bool:
    return not isinstance(target, Points) or target.swap is not None


def _mixed(mask: Mask, ratio: float) -> bool:
    """Whether no class has more than a share of the pixels that are not ignored, as mmsegmentation asks it."""
    counts = torch.bincount(mask.labels.flatten(), minlength=IGNORE + 1)[:IGNORE]
    return ratio >= 1 or (int((counts > 0).sum()) > 1 and float(counts.max()) < ratio * float(counts.sum()))


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    factor = min(factor, _LONGEST / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _pixels(image: "Image") -> Tensor:
    pixels: Tensor = _functional().pil_to_tensor(image)
    return pixels.float() / 127.5 - 1


def _padded(pixels: Tensor, target: Target, window: tuple[int, int]) -> tuple[Tensor, Target]:
    height, width = window
    return F.pad(pixels, (0, width - pixels.shape[2], 0, height - pixels.shape[1])), target.pad(height, width)


def _functional() -> Any:
    return require("torchvision.transforms.v2.functional", "transforming images", install="torchvision")
