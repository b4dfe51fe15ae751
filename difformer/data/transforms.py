"""Random transforms of training images, each a pure function of the image and of the sample's own generator."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difformer._optional import require
from difformer.config import Size, sides
from difformer.data.images import Preprocessing, enlarged, resize_to_cover
from difformer.data.spec import check_symmetries
from difformer.registry import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

# An RGB image of any size and the sample's generator, to (3, h, w) float32 in [-1, 1].
SampleTransform = Callable[["Image", np.random.Generator], Tensor]

_SYMMETRIES = ("flip", "flips", "symmetries")
_WITHOUT_TIMM = ("none", *_SYMMETRIES, "shift", "published")
# The first word of timm's names of augmentation policies.
TIMM_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")


@dataclass(frozen=True)
class PublishedTransform:
    """The published training transform: short side to a random size, random crop, flip, pixels to [-1, 1].

    Attributes:
        size: of the result in pixels, its side or (h, w).
        resize: smallest and largest short side of the window that the image covers before the crop, which has the
            result's proportions, both included; 1 and 5/4 times the result's when None, which is [256, 320] at 256.

    Raises:
        ValueError: sizes that are not in order.
    """

    size: Size
    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        low, high = self.short_sides
        if not 1 <= min(sides(self.size)) <= low <= high:
            raise ValueError(f"need 1 <= size <= smallest <= largest short side, got {self.size} and {self.resize}")

    @property
    def short_sides(self) -> tuple[int, int]:
        short = min(sides(self.size))
        return self.resize or (short, short * 5 // 4)

    def __call__(self, image: "Image", rng: np.random.Generator) -> Tensor:
        functional = require("torchvision.transforms.v2.functional", "augmenting images", install="torchvision")
        low, high = self.short_sides
        height, width = sides(self.size)
        resized = resize_to_cover(image, enlarged(self.size, int(rng.integers(low, high + 1))))
        top = int(rng.integers(0, resized.height - height + 1))
        left = int(rng.integers(0, resized.width - width + 1))
        cropped = functional.crop(resized, top, left, height, width)
        if rng.random() < 0.5:
            cropped = functional.horizontal_flip(cropped)
        pixels: Tensor = functional.pil_to_tensor(cropped)
        return pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class Symmetric:
    """The evaluation transform, then a symmetry that leaves the label as it is.

    Attributes:
        preprocessing: the evaluation transform.
        name: of the group it is drawn from: `flip`, `flips` or `symmetries`.

    Raises:
        ValueError: `symmetries` of images that are not square, which a quarter turn would give another shape.
    """

    preprocessing: Preprocessing
    name: str

    def __post_init__(self) -> None:
        check_symmetries(self.name, self.preprocessing.size)

    def __call__(self, image: "Image", rng: np.random.Generator) -> Tensor:
        pixels = self.preprocessing(image)
        flip, turns = rng.random() < 0.5, int(rng.integers(4))
        pixels = pixels.flip(2) if flip else pixels
        if self.name == "flips":
            return pixels.flip(1) if turns % 2 else pixels
        return torch.rot90(pixels, turns, (1, 2)).contiguous() if self.name == "symmetries" else pixels


@dataclass(frozen=True)
class Shifted:
    """The evaluation transform, moved by up to an eighth of each side, and a random horizontal flip.

    The margin that the move leaves is filled with reflected edges; He et al. 2016 fill CIFAR-10's with 0.
    Objects keep the scale they have in evaluation; `published` enlarges them by up to a quarter.

    Attributes:
        preprocessing: the evaluation transform.
    """

    preprocessing: Preprocessing

    def __call__(self, image: "Image", rng: np.random.Generator) -> Tensor:
        pixels = self.preprocessing(image)
        height, width = pixels.shape[1:]
        above, beside = height // 8, width // 8
        padded = F.pad(pixels, (beside, beside, above, above), mode="reflect")
        top, left = (int(rng.integers(0, 2 * margin + 1)) for margin in (above, beside))
        moved = padded[:, top : top + height, left : left + width]
        return moved.flip(2) if rng.random() < 0.5 else moved.contiguous()


@dataclass(frozen=True)
class Deterministic:
    """A transform without randomness."""

    transform: Callable[["Image"], Tensor]

    def __call__(self, image: "Image", rng: np.random.Generator) -> Tensor:
        return self.transform(image)


@dataclass(frozen=True)
class Isolated:
    """A transform that draws from the global generators, as timm's and torchvision's do."""

    transform: Callable[["Image"], Tensor]

    def __call__(self, image: "Image", rng: np.random.Generator) -> Tensor:
        with isolated_generators(rng):
            return self.transform(image)


@contextmanager
def isolated_generators(rng: np.random.Generator) -> Iterator[None]:
    """Seeds the global CPU generators of Python, NumPy and torch from another, and puts them back afterwards.

    Not for several threads at once: the generators belong to the whole process.
    """
    seeds = rng.integers(0, 2**32, size=3)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(int(seeds[0]))
        np.random.seed(int(seeds[1]))
        # Not torch.manual_seed, which would seed the accelerators' generators too.
        torch.default_generator.manual_seed(int(seeds[2]))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def create_transform(
    name: str, size: Size, *, resize: int | None = None, random_erasing: float = 0.0
) -> SampleTransform:
    """A transform by name.

    Args:
        name: `none` (the evaluation transform), `flip` (and a random horizontal flip), `flips` (horizontal, vertical
            or both), `symmetries` (one of the square's eight), `shift` (moved, and flip), `published`, `crop`, or a
            policy by timm's name.
        size: of the result in pixels, its side or (h, w).
        resize: short side before the central crop, as of `Preprocessing`, for `none` and those that begin with it: all
            but `published`, `crop` and policies.
        random_erasing: probability of timm's random erasing, for `crop` and timm's policies.

    Raises:
        ValueError: an unknown name, random erasing with a transform that has none, or `symmetries` of images that are
            not square.
    """
    if name in _WITHOUT_TIMM:
        if random_erasing:
            raise ValueError(f"random_erasing needs the augmentation `crop` or a policy of timm's, not {name!r}")
        evaluation = Preprocessing(size, resize)
        if name == "published":
            return PublishedTransform(size)
        if name == "shift":
            return Shifted(evaluation)
        return Symmetric(evaluation, name) if name in _SYMMETRIES else Deterministic(evaluation)
    known = (*_WITHOUT_TIMM, "crop", *TIMM_POLICIES)
    policy, *sections = name.split("-")
    if policy not in known[len(_WITHOUT_TIMM) :]:
        raise ValueError(f"unknown augmentation {name!r}; {did_you_mean(name, known)}")
    # timm ignores what it does not understand.
    odd = [section for section in sections if policy == "crop" or not re.fullmatch(r"[a-z]+\d[\d.]*", section)]
    if odd:
        raise ValueError(f"the augmentation {name!r} has the section {odd[0]!r}; expected letters and a number, as m9")
    return Isolated(_timm_transform(None if name == "crop" else name, size, random_erasing))


def _timm_transform(policy: str | None, size: Size, random_erasing: float) -> Callable[["Image"], Tensor]:
    timm = require("timm.data", "this augmentation", install="timm")
    height, width = sides(size)
    if policy is not None and policy.startswith("augmix") and height != width and _timm_version() < (1, 0, 30):
        raise ValueError(
            f"augmix of images that are not square needs timm 1.0.30 or later, and this is {version('timm')}"
        )
    # A crop has about the proportions of the result, up to 3:4 and 4:3, which is timm's default for squares.
    proportions = {} if height == width else {"ratio": (3 / 4 * width / height, 4 / 3 * width / height)}
    try:
        transform: Callable[[Image], Tensor] = timm.create_transform(
            input_size=size,
            is_training=True,
            color_jitter=None,
            auto_augment=policy,
            re_prob=random_erasing,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            **proportions,
        )
    # timm checks names with assertions.
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"timm does not know the augmentation {policy!r}: {error!r}") from error
    return transform


def _timm_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version("timm"))[:3])
