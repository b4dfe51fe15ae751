"""Feature maps of images that are to be matched, read as DIFT reads them (Tang et al. 2023)."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difformer.backbones import Backbone, check_backbone, device_of
from difformer.config import as_integer, as_positive_integer, check_choice, sides
from difformer.data import content_id
from difformer.engine.config.fitting import fitting
from difformer.engine.config.recipe import ExtractorConfig
from difformer.features import FeatureExtractor
from difformer.taps import LITERATURE_ENCODER_BLOCKS, resolve_tap, tap_names

Aspect = Literal["stretch", "keep"]

# DIFT's timestep for ADM-256.
_PUBLISHED_TIMESTEP = 101
# How much longer a side is at most that is read in its proportions; beyond, images are squeezed.
_LONGEST = 8
# Far above what any backbone reads; a mistyped size should not fill the memory.
_LARGEST = 8192
# Of the noisy images that go through the backbone at once: two of 512 pixels a side.
_PIXELS_AT_ONCE = 2 * 512**2


@dataclass(frozen=True)
class Reading:
    """How images are read to be matched. What is None follows from the backbone, see `place`.

    Attributes:
        tap: a tap or a block number.
        t: noise timestep.
        draws: noise draws that the map is averaged over.
        size: side in pixels of the square that images are scaled to.
        aspect: "stretch" scales every image to that square, whatever its proportions, as DIFT does; "keep" scales it
            to about as many pixels in about its own proportions, up to 8 : 1, in the multiples of the backbone.
        seed: of the noise.
        label: class, for a class-conditional backbone.
        chunk_size: noisy images that go through the backbone at once; as many as have 512² pixels twice when None.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    tap: str | int | None = None
    t: int | None = None
    draws: int = 8
    size: int | None = None
    aspect: Aspect = "stretch"
    seed: int = 0
    label: int | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_choice("aspect", self.aspect, get_args(Aspect))
        if not 0 <= as_integer("seed", self.seed) < 1 << 63:
            raise ValueError(f"seed must lie in [0, 2**63), got {self.seed}")
        for name in ("draws", "size", "chunk_size"):
            if (value := getattr(self, name)) is not None:
                as_positive_integer(name, value)
        if self.size is not None and self.size > _LARGEST:
            raise ValueError(f"size must be at most {_LARGEST} pixels, got {self.size}")

    def place(self, backbone: Backbone) -> tuple[str, int, int]:
        """Tap, timestep and size for a backbone.

        Where they are not given, those of ADM-256 are DIFT's: `out04` at t = 101, images of 512 pixels. Other backbones
        are read at the block that is as deep and at the timestep that recipes take by default, with images of twice
        their own side, as DIFT does.

        Raises:
            ValueError: a tap or size that the backbone does not take, or a size that must be given.
        """
        own, step = backbone.image_size, backbone.multiple
        suited = fitting(
            ExtractorConfig(), backbone.taps, num_timesteps=backbone.schedule.num_timesteps, image_size=own
        )
        tap = resolve_tap(suited.taps[0] if self.tap is None else self.tap, backbone.taps)
        published = own == 256 and tuple(backbone.taps) == tap_names(LITERATURE_ENCODER_BLOCKS)
        t = _PUBLISHED_TIMESTEP if published else suited.timesteps[0]
        size = self.size
        if size is None:
            if own is None:
                raise ValueError(f"{backbone.name} does not say its image size; give size, which images are scaled to")
            size = 2 * _multiple(math.sqrt(math.prod(sides(own))), step)
        if size % step:
            raise ValueError(
                f"size must be a multiple of {step} for {backbone.name}, got {size}; give {_multiple(size, step)}"
            )
        return tap, t if self.t is None else self.t, size


class MapReader:
    """Reads one map of features of each image.

    The whole image is scaled to the input, bicubic and antialiased as Pillow does it, and nothing is cropped: a map
    covers its image, and a place in one is the place in the other times the ratio of their sides. The noise of an
    image is a function of its pixels and the seed, so that a map does not depend on what else is read.

    Args:
        backbone: a frozen backbone.
        reading: how images are read.

    Attributes:
        tap, t, size: that images are read with.
        device: where maps are computed, and are.

    Raises:
        ValueError: as `Reading.place` and `FeatureExtractor`; or a class that the backbone does not have, or that must
            be given.
    """

    def __init__(self, backbone: Backbone, reading: Reading = Reading()) -> None:
        check_backbone(backbone)
        if backbone.conditioning and reading.label is None:
            raise ValueError(f"{backbone.name} is class-conditional; give label, the class that images are read with")
        if reading.label is not None and not backbone.conditioning:
            raise ValueError(f"{backbone.name} is not class-conditional; leave out label")
        self.tap, self.t, self.size = reading.place(backbone)
        self.device = device_of(backbone)
        self._reading = reading
        self._extractor = FeatureExtractor(
            backbone,
            taps=[self.tap],
            timesteps=[self.t],
            seed=reading.seed,
            draws=reading.draws,
            chunk_size=reading.chunk_size or max(1, _PIXELS_AT_ONCE // self.size**2),
            image_size=self.size,
            conditioning={} if reading.label is None else dict.fromkeys(backbone.conditioning, reading.label),
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of a size is scaled to."""
        if self._reading.aspect == "stretch":
            return self.size, self.size
        root, step = math.sqrt(min(max(height / width, 1 / _LONGEST), _LONGEST)), self._extractor.backbone.multiple
        tall, wide = (max(step, step * round(side / step)) for side in (self.size * root, self.size / root))
        return tall, wide

    def read(self, picture: Image.Image) -> Tensor:
        """The map of an upright RGB picture: (C, h, w) float32, on `device`.

        Raises:
            ValueError: the map is not finite.
        """
        height, width = self.input_size(picture.height, picture.width)
        # Pillow filters with a support that grows as the image shrinks.
        scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 127.5 - 1
        found = self._extractor(image[None].to(self.device), [content_id(image)])
        return next(iter(found.values()))[0]

    def describe(self) -> dict[str, Any]:
        """Everything that maps depend on, as JSON types."""
        backbone = self._extractor.backbone
        placed = {"tap": self.tap, "t": self.t, "size": self.size}
        return {"backbone": {"name": backbone.name, "digest": backbone.digest}, **asdict(self._reading), **placed}

    def __str__(self) -> str:
        """In a line."""
        name, how = Path(self._extractor.backbone.name).stem, self._reading
        shape = f"{self.size}×{self.size}" if how.aspect == "stretch" else f"about {self.size}² pixels"
        return f"{name}, {self.tap} at t = {self.t}, {how.draws} draws, images read as {shape}"


def _multiple(side: float, step: int) -> int:
    return math.ceil(side / step) * step
