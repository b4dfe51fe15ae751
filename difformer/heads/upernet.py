"""UperNet: pyramid pooling on the coarsest level, then a feature pyramid network (Xiao et al. 2018)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from difformer.config import NORM_GROUPS, Size, as_positive_integer, as_positive_integers, as_rate, as_switch
from difformer.heads._inputs import MapSides, describe, receive
from difformer.heads.pyramid import ConvNorm, NormName, Pyramid, at_the_finest, classifier_of_maps, resize, top_down
from difformer.heads.registry import HEADS
from difformer.taps import FeatureKey, TapSpec


@HEADS.register("upernet")
class UperNetHead(nn.Module):
    """Maps of logits by mmsegmentation's `UPerHead`: its arithmetic, its names and order of weights.

    Args:
        specs: the features it reads, a level of the pyramid for each size; see `Pyramid`.
        num_classes: channels of the maps.
        width: of all levels.
        norm: "batch", or "group" for one image at a time; then `width` is a multiple of 64, with `auxiliary` of 128.
        pool_scales: sides to which the coarsest level is pooled.
        dropout: probability of leaving out a channel before the classifier, in training.
        auxiliary: in training, give logits of the second coarsest level too, from mmseg's `FCNHead` with one
            convolution of half the width; published recipes weigh their loss by 0.4.
        image_size, finest_stride: see `Pyramid`. Blocks of strides 16, 8, 4 and 2 cost 375 GFLOP for an image
            of 512 pixels with the stride 4, in place of 1,710.

    Raises:
        ValueError: as `Pyramid`, or a bad number or norm.
    """

    gives = "maps"

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        width: int = 512,
        norm: NormName = "batch",
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary: bool = False,
        image_size: Size | None = None,
        finest_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(specs, image_size=image_size, finest_stride=finest_stride)
        self.specs = self.pyramid.specs
        self.map_sizes: dict[FeatureKey, Size | None] = dict.fromkeys(self.specs)
        self.learned_from: set[MapSides] = set()
        self.num_classes = as_positive_integer("num_classes", num_classes)
        width, scales = as_positive_integer("width", width), as_positive_integers("pool_scales", pool_scales)
        dropout, auxiliary = as_rate("dropout", dropout), as_switch("auxiliary", auxiliary)
        if auxiliary and norm == "group" and width % (4 * NORM_GROUPS):
            raise ValueError(
                f"with norm='group' and auxiliary, which has half the width, width must be a multiple of "
                f"{4 * NORM_GROUPS}, got {width}"
            )
        self.arguments: dict[str, Any] = {
            "width": width, "norm": norm, "pool_scales": list(scales), "dropout": dropout, "auxiliary": auxiliary,
            **self.pyramid.arguments,
        }  # fmt: skip
        *finer, coarsest = self.pyramid.channels
        self.conv_seg = classifier_of_maps(width, self.num_classes)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNorm(coarsest, width, 1, norm)) for scale in scales
        )
        self.bottleneck = ConvNorm(coarsest + len(scales) * width, width, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvNorm(channels, width, 1, norm) for channels in finer)
        self.fpn_convs = nn.ModuleList(ConvNorm(width, width, 3, norm) for _ in finer)
        self.fpn_bottleneck = ConvNorm(len(self.pyramid) * width, width, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.auxiliary_head = None
        if auxiliary:
            self.auxiliary_head = _auxiliary(self.pyramid.channels[-2:][0], width // 2, self.num_classes, norm, dropout)

    __repr__ = describe

    @property
    def needs_several_images(self) -> bool:
        """Whether its batch norms see one cell of each image, and so no variance in a single one."""
        return self.arguments["norm"] == "batch" and (
            1 in self.arguments["pool_scales"]
            or any((spec.height, spec.width) == (1, 1) for spec in self.specs.values())
        )

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Classifies each place of the finest level.

        Args:
            features: (B, C, h, w) by key; more than it needs may be there.

        Returns:
            Logits (B, num_classes, h, w) at the size of the finest level; in training with `auxiliary`, also those of
            the auxiliary head, at the size of the second coarsest.

        Raises:
            ValueError: see `receive` and `Pyramid`; or batch norm is to learn from a single cell of one image.
        """
        levels = self.pyramid(receive(self, features), self.conv_seg.weight.dtype)
        one_cell = 1 in self.arguments["pool_scales"] or levels[-1].shape[2:] == (1, 1)
        if self.training and len(levels[0]) == 1 and one_cell and self.arguments["norm"] == "batch":
            raise ValueError(
                "batch norm cannot learn from one image at a time, pooled to one cell: give more images at once, or "
                "the head norm='group'"
            )
        pooled = [resize(pool(levels[-1]), levels[-1].shape[2:]) for pool in self.psp_modules]
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=False)]
        *finer, coarsest = top_down([*laterals, self.bottleneck(torch.cat([levels[-1], *pooled], dim=1))])
        refined = [conv(level) for conv, level in zip(self.fpn_convs, finer, strict=True)]
        logits: Tensor = self.conv_seg(self.dropout(self.fpn_bottleneck(at_the_finest([*refined, coarsest]))))
        if self.auxiliary_head is None or not self.training:
            return logits
        return logits, self.auxiliary_head(levels[-2:][0])


def _auxiliary(channels: int, width: int, num_classes: int, norm: NormName, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            convs=nn.Sequential(ConvNorm(channels, width, 3, norm)),
            dropout=nn.Dropout2d(dropout),
            conv_seg=classifier_of_maps(width, num_classes),
        )
    )
