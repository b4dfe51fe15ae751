"""What fuses several blocks and timesteps: tokens of their maps, and the transformer they go through."""

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from difformer.config import as_positive_integer, as_positive_number, as_rate, as_switch
from difformer.heads._inputs import MapSides, check_specs
from difformer.heads.tokens import Tokenizer, TokenNorm, sincos_positions
from difformer.heads.transformer import Summary
from difformer.models.attention import AttentionName
from difformer.taps import FeatureKey, TapSpec

Variant = Literal["published", "joint"]


class Fusion(nn.Module):
    """The part that `DifFormerHead`, which sums the tokens up, and `DenseDifFormerHead`, which makes maps of them, have
    in common; its weights have the same names in both.

    Args:
        specs: the features it reads.
        num_classes: length of the logits.
        variant, width, heads, layers, mlp_ratio, pool, norm, attention_pool, dropout, drop_path, attention: as for
            `DifFormerHead`.

    Attributes:
        fusion_arguments: these by name, as JSON types, without the attention.

    Raises:
        ValueError: as `DifFormerHead`.
    """

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        variant: Variant,
        width: int,
        heads: int,
        layers: int,
        mlp_ratio: float,
        pool: int,
        norm: TokenNorm | None,
        attention_pool: bool,
        dropout: float,
        drop_path: float,
        attention: AttentionName,
    ) -> None:
        super().__init__()
        self.specs = check_specs(specs)
        self.learned_from: set[MapSides] = set()
        self.num_classes = as_positive_integer("num_classes", num_classes)
        width, heads, layers, pool = (
            as_positive_integer(name, value)
            for name, value in {"width": width, "heads": heads, "layers": layers, "pool": pool}.items()
        )
        mlp_ratio = as_positive_number("mlp_ratio", mlp_ratio)
        attention_pool = as_switch("attention_pool", attention_pool)
        dropout, drop_path = as_rate("dropout", dropout), as_rate("drop_path", drop_path)
        _check_variant(variant, width, attention_pool=attention_pool, dropout=dropout, drop_path=drop_path)
        joint = variant == "joint"
        if norm is None:
            norm = "channel" if joint else "layer"
        self.variant = variant
        self.pool = pool
        self.fusion_arguments: dict[str, Any] = {
            "variant": variant, "width": width, "heads": heads, "layers": layers, "mlp_ratio": mlp_ratio,
            "pool": pool, "norm": norm, "attention_pool": attention_pool, "dropout": dropout, "drop_path": drop_path,
        }  # fmt: skip
        self.timesteps = tuple(dict.fromkeys(key.t for key in self.specs))
        self.tokenizers = nn.ModuleDict(
            {key.tap: Tokenizer(spec.channels, spec.size, width, pool, norm) for key, spec in self.specs.items()}
        )
        self.summary = Summary(
            width, heads, layers, mlp_ratio,
            dropout=dropout, drop_path=drop_path, attention_pool=attention_pool, final_norm=joint,
            implementation=attention,
        )  # fmt: skip
        self.embeddings = _KeyEmbedding(list(self.specs), width, dropout) if joint else None

    def token_groups(self, maps: Mapping[FeatureKey, Tensor]) -> list[dict[FeatureKey, Tensor]]:
        """Tokens of each feature, in groups that go through the transformer together.

        Args:
            maps: (B, C, h, w) by key, those of the specs.

        Returns:
            (B, N, width) by key: the cells of the pooled map in row-major order.
        """
        tokens = {}
        for key, feature in maps.items():
            tokenizer = cast(Tokenizer, self.tokenizers[key.tap])
            cells = tokenizer(feature.to(tokenizer.project.weight.dtype))
            tokens[key] = cells.flatten(2).transpose(1, 2)
            if self.embeddings is not None:
                tokens[key] = self.embeddings(tokens[key], key, cells.shape[2], cells.shape[3])
        if self.embeddings is not None:
            return [tokens]
        return [{key: value for key, value in tokens.items() if key.t == t} for t in self.timesteps]

    def fused_maps(self, maps: Mapping[FeatureKey, Tensor]) -> dict[FeatureKey, Tensor]:
        """What the transformer makes of each feature's tokens, laid out as its pooled map again.

        Args:
            maps: as for `token_groups`.

        Returns:
            (B, width, h', w') by key, with sides of at most `pool`.
        """
        fused = {}
        for group in self.token_groups(maps):
            tokens = self.summary.all_tokens(torch.cat(list(group.values()), dim=1))
            parts = tokens.split([one.shape[1] for one in group.values()], dim=1)
            for key, part in zip(group, parts, strict=True):
                grid = cast(Tokenizer, self.tokenizers[key.tap]).grid(*maps[key].shape[2:])
                fused[key] = part.transpose(1, 2).unflatten(2, grid)
        return {key: fused[key] for key in maps}


class _KeyEmbedding(nn.Module):
    """Tells tokens where they come from: block and round, timestep, and place in the image."""

    def __init__(self, keys: list[FeatureKey], width: int, dropout: float) -> None:
        super().__init__()
        self.block_index = {block: i for i, block in enumerate(dict.fromkeys((key.tap, key.round) for key in keys))}
        self.time_index = {t: i for i, t in enumerate(dict.fromkeys(key.t for key in keys))}
        self.block = nn.Parameter(nn.init.normal_(torch.empty(len(self.block_index), width), std=0.02))
        self.time = nn.Parameter(nn.init.normal_(torch.empty(len(self.time_index), width), std=0.02))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, key: FeatureKey, height: int, width: int) -> Tensor:
        places = sincos_positions(height, width, tokens.shape[2], tokens.device).to(tokens.dtype)
        source = self.block[self.block_index[key.tap, key.round]] + self.time[self.time_index[key.t]]
        return self.dropout(tokens + places + source)


def _check_variant(variant: str, width: int, **joint_only: float | bool) -> None:
    if variant not in get_args(Variant):
        raise ValueError(f"unknown variant {variant!r}; expected one of {', '.join(get_args(Variant))}")
    if variant == "joint" and width % 4:
        raise ValueError(f"the joint variant's positions need a width that is a multiple of 4, got {width}")
    given = [name for name, value in joint_only.items() if value]
    if variant == "published" and given:
        raise ValueError(f"{', '.join(given)}: the published model has no such option; use variant='joint'")
