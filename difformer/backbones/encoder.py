"""A backbone with the interface that decoders of other libraries expect: images to a list of maps."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from difformer.backbones.protocol import Backbone
from difformer.config import as_integer, sides
from difformer.data import content_id
from difformer.diffusion import image_noise, q_sample
from difformer.taps import resolve_taps


class FeatureInfo(list[dict[str, Any]]):
    """Describes the maps of an encoder in their order: dictionaries with `module`, `num_chs` and `reduction`, and the
    methods of timm's class of this name."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """How many pixels of the image a side of a cell is."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """The taps."""
        return [info["module"] for info in self]


class Encoder(nn.Module):
    """Images to a list of maps at one timestep, as timm's models give them with `features_only=True`.

    Args:
        backbone: a frozen backbone that says its image size.
        taps: tap names or block numbers, in the order the maps are wanted.
        t: the noise timestep.
        seed: of the noise.

    Attributes:
        feature_info: channels and reduction of each map.

    Raises:
        ValueError: unknown or repeated taps, a timestep that the schedule does not have, or a backbone that does not
            say its image size.
    """

    def __init__(self, backbone: Backbone, taps: Iterable[str | int], t: int, *, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps = resolve_taps(taps, backbone.taps)
        self.t = as_integer("t", t)
        if not 0 <= self.t < backbone.schedule.num_timesteps:
            raise ValueError(f"t must lie in [0, {backbone.schedule.num_timesteps}), got {t}")
        self.seed = as_integer("seed", seed)
        if backbone.image_size is None:
            raise ValueError("this backbone does not say its image size, so the reduction of its maps is not known")
        height = sides(backbone.image_size)[0]
        self.feature_info = FeatureInfo(
            {
                "module": tap,
                "num_chs": backbone.taps[tap].channels,
                "reduction": height // backbone.taps[tap].height,
            }
            for tap in self.taps
        )

    @torch.no_grad()
    def forward(
        self, images: Tensor, ids: Tensor | Sequence[int] | None = None, **conditioning: Tensor
    ) -> list[Tensor]:
        """Reads the maps; no gradient is kept.

        Args:
            images: (B, 3, H, W) in [-1, 1], on the backbone's device.
            ids: (B,) the images' stable numbers, which their noise depends on; taken from their pixels when left out.
            conditioning: what the backbone is conditioned on, one row an image.

        Returns:
            (B, C, h, w) float32 for each tap, in the order of the request.
        """
        numbers = [content_id(image) for image in images] if ids is None else ids
        x_0 = self.backbone.encode(images)
        t = torch.full((len(images),), self.t, device=images.device)
        x_t = q_sample(x_0, t, image_noise(x_0, numbers, t, seed=self.seed), self.backbone.schedule)
        maps = self.backbone.forward_taps(x_t, t, self.taps, **conditioning)
        return [maps[tap].float() for tap in self.taps]
