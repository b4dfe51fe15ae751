"""DifFormer: attention across blocks of different resolutions and across timesteps (arXiv 2311.17921)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from difformer.config import Size, size_of
from difformer.heads._inputs import MapSides, check_specs, describe, receive, single_key
from difformer.heads.fusion import Fusion, Variant
from difformer.heads.registry import HEADS
from difformer.heads.tokens import TokenNorm
from difformer.models.attention import AttentionName
from difformer.models.modes import evaluation_mode
from difformer.taps import FeatureKey, TapSpec


@HEADS.register("difformer")
class DifFormerHead(Fusion):
    """Fuses features of several blocks and timesteps.

    Each map is pooled to at most `pool` cells a side, normalised and projected to tokens; one tokenizer a tap, shared
    by timesteps and rounds.

    `variant="published"`: the tokens of all blocks at one timestep go through a transformer with a CLS token, the
    same for each timestep; the CLS vectors are concatenated and classified. There are no embeddings of position,
    block or time. `difformer.heads.published` maps its weights to the published names.

    `variant="joint"`: one transformer over the tokens of all blocks and timesteps together, with learned embeddings
    of block (and round) and timestep and sine-cosine positions that fit every map's resolution.

    Args:
        specs: the features it reads; an extractor's `specs`.
        num_classes: length of the logits.
        variant: "published" or "joint".
        width: of the tokens; in the joint variant a multiple of 4.
        heads: attention heads.
        layers: transformer blocks.
        mlp_ratio: hidden width of the MLPs over `width`.
        pool: greatest side of a pooled map.
        norm: "layer" (default when published), "batch" or "channel" (default when joint; fits images of any size).
        attention_pool: joint only: pool by a learned query instead of a CLS token.
        dropout: joint only: probability in training.
        drop_path: joint only: stochastic depth of the last block.
        attention: implementation of the attention.

    Raises:
        ValueError: unknown options, bad numbers, or joint options in the published variant.
    """

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        variant: Variant = "published",
        width: int = 1024,
        heads: int = 8,
        layers: int = 2,
        mlp_ratio: float = 4.0,
        pool: int = 16,
        norm: TokenNorm | None = None,
        attention_pool: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        attention: AttentionName = "auto",
    ) -> None:
        super().__init__(
            specs, num_classes,
            variant=variant, width=width, heads=heads, layers=layers, mlp_ratio=mlp_ratio, pool=pool, norm=norm,
            attention_pool=attention_pool, dropout=dropout, drop_path=drop_path, attention=attention,
        )  # fmt: skip
        self.arguments: dict[str, Any] = dict(self.fusion_arguments)
        vectors = 1 if variant == "joint" else len(self.timesteps)
        self.fc = nn.Linear(self.arguments["width"] * vectors, self.num_classes)

    @property
    def map_sizes(self) -> dict[FeatureKey, Size | None]:
        """The size to which each map is averaged before anything else, a side or (h, w), None for no averaging.

        The logits are the same for maps that went through `adaptive_avg_pool2d` to these sizes beforehand, so only the
        pooled maps need to be kept. Without norm="layer" this holds for maps of the specs' own sizes: larger images may
        have more cells, up to `pool` a side.
        """
        return {
            key: size_of(min(spec.height, self.pool), min(spec.width, self.pool)) for key, spec in self.specs.items()
        }

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Classifies.

        Args:
            features: (B, C, h, w) by key; those it does not need are ignored.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: a feature is missing or has the wrong shape.
        """
        groups = self.token_groups(receive(self, features))
        return self.fc(torch.cat([self.summary(torch.cat(list(group.values()), dim=1)) for group in groups], dim=1))

    @torch.no_grad()
    def attention_share(self, features: Mapping[FeatureKey, Tensor]) -> dict[FeatureKey, Tensor]:
        """How much of the last attention each block and timestep received.

        The share of a feature is the attention that the CLS token (or the pooling query) pays to its tokens in the
        last block, averaged over heads. In the published variant each timestep goes through the transformer separately,
        and all count equally. It is measured in evaluation mode, and changes nothing in the head.

        Args:
            features: as for `forward`.

        Returns:
            (B,) by key; the shares of an image sum to 1.
        """
        shares: dict[FeatureKey, Tensor] = {}
        with evaluation_mode(self):
            groups = self.token_groups(receive(self, features))
            for group in groups:
                weights = self.summary.shares(torch.cat(list(group.values()), dim=1))
                parts = weights.split([tokens.shape[1] for tokens in group.values()], dim=1)
                shares |= {key: part.sum(dim=1) / len(groups) for key, part in zip(group, parts, strict=True)}
        return {key: shares[key] for key in self.specs}


@HEADS.register("attention")
class AttentionHead(nn.Module):
    """The published attention probe of one feature: `DifFormerHead` with a single block and timestep.

    Args:
        specs: the one feature it reads.
        num_classes: length of the logits.
        width, heads, layers, mlp_ratio, pool, norm, attention: as for `DifFormerHead`.

    Raises:
        ValueError: not exactly one feature, or as `DifFormerHead`.
    """

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        width: int = 1024,
        heads: int = 8,
        layers: int = 2,
        mlp_ratio: float = 4.0,
        pool: int = 16,
        norm: TokenNorm = "layer",
        attention: AttentionName = "auto",
    ) -> None:
        super().__init__()
        self.specs = check_specs(specs)
        single_key(self.specs)
        given = {"width": width, "heads": heads, "layers": layers, "mlp_ratio": mlp_ratio, "pool": pool, "norm": norm}
        self.difformer = DifFormerHead(self.specs, num_classes, attention=attention, **given)  # type: ignore[arg-type]
        self.num_classes = self.difformer.num_classes
        self.arguments: dict[str, Any] = {name: self.difformer.arguments[name] for name in given}

    @property
    def map_sizes(self) -> dict[FeatureKey, Size | None]:
        """The size to which each map is averaged before anything else; see `DifFormerHead.map_sizes`."""
        return self.difformer.map_sizes

    @property
    def learned_from(self) -> set[MapSides]:
        """The sides of the maps it learned from; see `receive`."""
        return self.difformer.learned_from

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Args: features, (B, C, h, w) by key. Returns logits (B, num_classes). Raises ValueError: see `receive`."""
        return self.difformer(features)
