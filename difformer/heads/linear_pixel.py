"""A linear layer of each pixel's features: what the features say by themselves, place by place."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_switch
from difformer.heads._inputs import MapSides, describe, receive
from difformer.heads.pyramid import Pyramid, linear_of_pixels
from difformer.heads.registry import HEADS
from difformer.taps import FeatureKey, TapSpec


@HEADS.register("linear_pixel")
class LinearPixelHead(nn.Module):
    """Maps of logits: one linear layer of each pixel's features, all maps resized bilinearly to the finest level.

    Args:
        specs: the features it reads.
        num_classes: channels of the maps.
        batch_norm: normalise each level first, without learned scale; blocks differ in the size of their values.
        image_size, finest_stride: see `Pyramid`.

    Raises:
        ValueError: as `Pyramid`, or a bad number.
    """

    gives = "maps"

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        batch_norm: bool = True,
        image_size: Size | None = None,
        finest_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(specs, image_size=image_size, finest_stride=finest_stride)
        self.specs = self.pyramid.specs
        self.map_sizes: dict[FeatureKey, Size | None] = dict.fromkeys(self.specs)
        self.learned_from: set[MapSides] = set()
        self.num_classes = as_positive_integer("num_classes", num_classes)
        batch_norm = as_switch("batch_norm", batch_norm)
        self.arguments: dict[str, Any] = {"batch_norm": batch_norm, **self.pyramid.arguments}
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels, affine=False) if batch_norm else nn.Identity()
            for channels in self.pyramid.channels
        )
        self.fc = nn.Linear(sum(self.pyramid.channels), self.num_classes)

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Args: features, (B, C, h, w) by key. Returns logits (B, num_classes, h, w) at the size of the finest level.

        Raises:
            ValueError: see `receive` and `Pyramid`.
        """
        levels = self.pyramid(receive(self, features), self.fc.weight.dtype)
        normed = [norm(level) for norm, level in zip(self.norms, levels, strict=True)]
        return linear_of_pixels(normed, self.fc, levels[0].shape[2:])
