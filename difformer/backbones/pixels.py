"""Raw pixels as features: the baseline that shows what a diffusion model adds."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.backbones.families import FAMILIES
from difformer.diffusion import NoiseSchedule
from difformer.taps import TapSpec

PIXELS = "pixels"
# By tap: how often the image is averaged to half its size, and the side of the neighbourhood of a place.
_TAPS = {"patch": (0, 7), "half": (1, 3), "quarter": (2, 3), "eighth": (3, 3), "sixteenth": (4, 3)}


class PixelBackbone:
    """The pixels around each place, at several scales, in the form of a backbone's taps.

    `patch` has the 7×7 pixels around each pixel; `half`, `quarter`, `eighth` and `sixteenth` the 3×3 places around each
    place of the image averaged to that share of its size. Edges are repeated. Nothing is learned, and the timestep
    changes nothing: read it with `clean=True`, otherwise noise is added as to any image.

    In a recipe: `backbone: {name: pixels, family: pixels}` and `extractor: {taps: [patch, half, …], timesteps: [0],
    clean: true}`.
    """

    name = PIXELS
    digest = hashlib.sha256(b"difformer pixels 1").hexdigest()
    dtype = torch.float32
    image_size = None
    multiple = 16
    conditioning: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.schedule = NoiseSchedule.linear()
        self.taps: Mapping[str, TapSpec] = self.taps_at(64, 64)

    @classmethod
    def open(cls, name_or_path: str | Path, **how: Any) -> "PixelBackbone":
        """There is nothing to open.

        Args:
            name_or_path: "pixels".
            how: as of other families; without meaning here.

        Raises:
            ValueError: another name.
        """
        if str(name_or_path) != PIXELS:
            raise ValueError(f"the family {PIXELS} has one backbone, {PIXELS}, got {name_or_path}")
        return cls()

    @classmethod
    def build(cls, name_or_path: str | Path, **how: Any) -> "PixelBackbone":
        """As `open`."""
        return cls.open(name_or_path, **how)

    def taps_at(self, height: int, width: int) -> dict[str, TapSpec]:
        """The taps for images of a size.

        Raises:
            ValueError: a side that is no multiple of 16.
        """
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"sides of images must be multiples of {self.multiple}, got {height}×{width}")
        return {
            name: TapSpec(name, number, 3 * side**2, (height >> halvings, width >> halvings), 0)
            for number, (name, (halvings, side)) in enumerate(_TAPS.items(), 1)
        }

    def encode(self, images: Tensor) -> Tensor:
        """The images as they are."""
        return images

    def forward_taps(
        self, x_t: Tensor, t: int | Tensor, taps: Sequence[str], *, inject: Any = None, **conditioning: Tensor
    ) -> dict[str, Tensor]:
        """The neighbourhoods of each place.

        Args:
            x_t: (B, 3, H, W).
            t: without meaning.
            taps: names.
            inject: must be None: pixels have no decoder to feed back.
            conditioning: none.

        Raises:
            ValueError: features are to be fed back.
        """
        if inject:
            raise ValueError(
                "pixels have no decoder whose features could be fed back; leave extractor.feedback_taps out"
            )
        found = {}
        for name in taps:
            halvings, side = _TAPS[name]
            image = F.avg_pool2d(x_t, 1 << halvings) if halvings else x_t
            padded = F.pad(image, (side // 2,) * 4, mode="replicate")
            found[name] = F.unfold(padded, side).unflatten(2, image.shape[2:])
        return found

    def describe(self) -> dict[str, Any]:
        """What identifies it."""
        schedule = self.schedule.to_dict()
        return {"family": PIXELS, "name": self.name, "digest": self.digest, "config": None, "schedule": schedule}


FAMILIES.register(PIXELS)(PixelBackbone)
