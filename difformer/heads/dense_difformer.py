"""DifFormer with maps of logits: what its transformer fuses, decoded back to the resolution of the features."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_rate, as_switch
from difformer.heads._inputs import describe, receive
from difformer.heads.fusion import Fusion, Variant
from difformer.heads.pyramid import ConvNorm, NormName, Pyramid, at_the_finest, classifier_of_maps, resize, top_down
from difformer.heads.registry import HEADS
from difformer.heads.tokens import TokenNorm
from difformer.models.attention import AttentionName
from difformer.taps import FeatureKey, TapSpec


@HEADS.register("dense_difformer")
class DenseDifFormerHead(Fusion):
    """Fuses features of several blocks and timesteps by `DifFormerHead`'s transformer, and classifies each place.

    All tokens that come out of the transformer are laid out as maps again. Those of one level of the pyramid are
    convolved together (1×1), resized to the level, and added to the level's own features (1×1), which have the detail
    that tokens of pooled maps lack. A feature pyramid network without pooling follows, as in UperNet: coarser levels
    are added to finer ones, and each is convolved (3×3), all together (3×3), and classified.

    The fusion's weights are those of a `DifFormerHead` with the same options, by name and shape, without its `fc`: a
    trained one can be a start.

    Args:
        specs: the features it reads, a level of the pyramid for each size; see `Pyramid`.
        num_classes: channels of the maps.
        variant, width, heads, layers, mlp_ratio, pool, norm, dropout, drop_path, attention: as for `DifFormerHead`.
        decoder_width: of all levels.
        decoder_norm: "batch", or "group", for which `decoder_width` is a multiple of 64.
        decoder_dropout: probability of leaving out a channel before the classifier, in training.
        skip: add the level's own features; without them, the transformer's tokens are all that is decoded.
        image_size, finest_stride: see `Pyramid`.

    Raises:
        ValueError: as `DifFormerHead` and `Pyramid`, or a bad number or norm.
    """

    gives = "maps"

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        variant: Variant = "joint",
        width: int = 512,
        heads: int = 8,
        layers: int = 2,
        mlp_ratio: float = 4.0,
        pool: int = 16,
        norm: TokenNorm | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        attention: AttentionName = "auto",
        decoder_width: int = 256,
        decoder_norm: NormName = "batch",
        decoder_dropout: float = 0.1,
        skip: bool = True,
        image_size: Size | None = None,
        finest_stride: int | None = None,
    ) -> None:
        super().__init__(
            specs, num_classes,
            variant=variant, width=width, heads=heads, layers=layers, mlp_ratio=mlp_ratio, pool=pool, norm=norm,
            attention_pool=False, dropout=dropout, drop_path=drop_path, attention=attention,
        )  # fmt: skip
        self.pyramid = Pyramid(specs, image_size=image_size, finest_stride=finest_stride)
        self.map_sizes: dict[FeatureKey, Size | None] = dict.fromkeys(self.specs)
        decoder_width = as_positive_integer("decoder_width", decoder_width)
        decoder_dropout, skip = as_rate("decoder_dropout", decoder_dropout), as_switch("skip", skip)
        fusion = {name: value for name, value in self.fusion_arguments.items() if name != "attention_pool"}
        self.arguments: dict[str, Any] = {
            **fusion, "decoder_width": decoder_width, "decoder_norm": decoder_norm, "decoder_dropout": decoder_dropout,
            "skip": skip, **self.pyramid.arguments,
        }  # fmt: skip
        width = fusion["width"]
        self.token_convs = nn.ModuleList(
            ConvNorm(len(keys) * width, decoder_width, 1, decoder_norm) for keys in self.pyramid.keys
        )
        self.lateral_convs = nn.ModuleList(
            ConvNorm(channels, decoder_width, 1, decoder_norm) for channels in self.pyramid.channels if skip
        )
        self.fpn_convs = nn.ModuleList(
            ConvNorm(decoder_width, decoder_width, 3, decoder_norm) for _ in self.token_convs
        )
        self.fpn_bottleneck = ConvNorm(len(self.pyramid) * decoder_width, decoder_width, 3, decoder_norm)
        self.dropout = nn.Dropout2d(decoder_dropout)
        self.conv_seg = classifier_of_maps(decoder_width, self.num_classes)

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Classifies each place of the finest level.

        Args:
            features: (B, C, h, w) by key; more than it needs may be there.

        Returns:
            Logits (B, num_classes, h, w) at the size of the finest level.

        Raises:
            ValueError: see `receive` and `Pyramid`.
        """
        maps = receive(self, features)
        levels = self.pyramid(maps, self.conv_seg.weight.dtype)
        fused = self.fused_maps(maps)
        laterals = [
            resize(conv(at_the_finest([fused[key] for key in keys])), level.shape[2:])
            for conv, keys, level in zip(self.token_convs, self.pyramid.keys, levels, strict=True)
        ]
        # None without skips.
        for i, lateral in enumerate(self.lateral_convs):
            laterals[i] = laterals[i] + lateral(levels[i])
        refined = [conv(level) for conv, level in zip(self.fpn_convs, top_down(laterals), strict=True)]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(at_the_finest(refined))))
