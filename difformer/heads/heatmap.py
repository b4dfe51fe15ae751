"""Landmarks as heat maps: one map a point, highest where it lies."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from difformer.config import Size, as_positive_integer
from difformer.heads._inputs import MapSides, describe, receive
from difformer.heads.pyramid import ConvNorm, NormName, Pyramid, classifier_of_maps, resize, top_down
from difformer.heads.registry import HEADS
from difformer.taps import FeatureKey, TapSpec


@HEADS.register("heatmap")
class HeatmapHead(nn.Module):
    """One heat map a point, from all levels of the pyramid added up at one stride.

    What the maps are to be, and which points they mean, the task `keypoints` says.

    Args:
        specs: the features it reads, a level of the pyramid for each size; see `Pyramid`.
        num_classes: how many points there are.
        stride: pixels of the image for each cell of the heat maps. Finer levels are averaged to it, and where all are
            coarser, their sum is resized to it.
        width: of all levels.
        norm: "batch", or "group", for which `width` is a multiple of 64.
        image_size: see `Pyramid`; it must be given.

    Raises:
        ValueError: as `Pyramid`, a bad number or norm, or a stride that does not divide that of the finest level.
    """

    gives = "points"

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        stride: int = 4,
        width: int = 256,
        norm: NormName = "batch",
        image_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.stride = as_positive_integer("stride", stride)
        self.pyramid = Pyramid(specs, image_size=image_size, finest_stride=self.stride)
        self.specs = self.pyramid.specs
        self.map_sizes: dict[FeatureKey, Size | None] = dict.fromkeys(self.specs)
        self.learned_from: set[MapSides] = set()
        self.num_classes = as_positive_integer("num_classes", num_classes)
        self.scale = self.pyramid.scale_to(self.stride)
        width = as_positive_integer("width", width)
        self.arguments: dict[str, Any] = {
            "stride": self.stride, "width": width, "norm": norm, "image_size": self.pyramid.arguments["image_size"],
        }  # fmt: skip
        self.lateral_convs = nn.ModuleList(ConvNorm(channels, width, 1, norm) for channels in self.pyramid.channels)
        self.convs = nn.Sequential(ConvNorm(width, width, 3, norm), ConvNorm(width, width, 3, norm))
        self.heatmaps = classifier_of_maps(width, self.num_classes)

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Args: features, (B, C, h, w) by key. Returns heat maps (B, num_classes, h, w) at the stride.

        Raises:
            ValueError: see `receive` and `Pyramid`.
        """
        levels = self.pyramid(receive(self, features), self.heatmaps.weight.dtype)
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=True)]
        finest, *_ = top_down(laterals)
        size = (finest.shape[2] * self.scale, finest.shape[3] * self.scale)
        return self.heatmaps(self.convs(resize(finest, size)))
