"""The transformer of the fusion heads: pre-norm blocks, and a summary of all tokens in one vector."""

import math
from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from difformer._optional import require
from difformer.models.attention import AttentionName, attention, check_attention


class SelfAttention(nn.Module):
    """Multi-head self-attention; projections to queries, keys and values have no bias, as published."""

    def __init__(self, width: int, heads: int, implementation: AttentionName) -> None:
        super().__init__()
        self.heads = heads
        self.implementation: AttentionName = implementation
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Args: x (B, N, width); first, number of query tokens, all N when None. Returns (B, first, width)."""
        h = attention(*self._split(x, first), implementation=self.implementation)
        return self.proj(rearrange(h, "b heads n d -> b n (heads d)"))

    def first_token_log_weights(self, x: Tensor) -> Tensor:
        """Logarithm of how much the first token attends to each, averaged over heads: (B, N)."""
        q, k, _ = self._split(x, 1)
        return _log_weights(q, k)

    def _split(self, x: Tensor, first: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first tokens, (B, heads, first, d), keys and values of all, (B, heads, N, d)."""
        if first is None:
            q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
            return q, k, v
        of_queries, of_keys_and_values = self.qkv.weight.tensor_split([x.shape[2]])
        q = rearrange(F.linear(x[:, :first], of_queries), "b n (heads d) -> b heads n d", heads=self.heads)
        kv = F.linear(x, of_keys_and_values)
        k, v = rearrange(kv, "b n (two heads d) -> two b heads n d", two=2, heads=self.heads)
        return q, k, v


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and residual."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, dropout: float, drop_path: float, implementation: AttentionName
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, implementation)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, hidden), act=nn.GELU(), drop=nn.Dropout(dropout), fc2=nn.Linear(hidden, width)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.drop_path: nn.Module = nn.Identity()
        if drop_path:
            layers = require("timm.layers", "stochastic depth", install="timm torchvision")
            self.drop_path = layers.DropPath(drop_path)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Args: x (B, N, width); first, number of query tokens, all N when None. Returns (B, first, width)."""
        x = x[:, :first] + self.drop_path(self.dropout(self.attn(self.norm1(x), first)))
        return x + self.drop_path(self.dropout(self.mlp(self.norm2(x))))


class AttentionPool(nn.Module):
    """One learned query attends to all tokens (as in Lee et al. 2019, pooling by multi-head attention)."""

    def __init__(self, width: int, heads: int, implementation: AttentionName) -> None:
        super().__init__()
        self.heads = heads
        self.implementation: AttentionName = implementation
        self.query = nn.Parameter(nn.init.normal_(torch.empty(1, heads, 1, width // heads), std=0.02))
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, N, width). Returns (B, width)."""
        k, v = self._split(x)
        h = attention(self.query.expand(len(x), -1, -1, -1), k, v, implementation=self.implementation)
        return self.proj(h.flatten(1))

    def log_weights(self, x: Tensor) -> Tensor:
        """Logarithm of how much the query attends to each token, averaged over heads: (B, N)."""
        return _log_weights(self.query.expand(len(x), -1, -1, -1), self._split(x)[0])

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(self.kv(x), "b n (two heads d) -> two b heads n d", two=2, heads=self.heads)


class Summary(nn.Module):
    """A transformer that summarises any number of tokens in one vector, by a CLS token or by attention pooling.

    Args:
        width: of the tokens.
        heads: attention heads; they must divide the width.
        layers: transformer blocks.
        mlp_ratio: hidden width of the MLPs over `width`.
        dropout: probability in training, in attention's and the MLP's outputs.
        drop_path: stochastic depth of the last block; earlier ones have proportionally less.
        attention_pool: pool by a learned query instead of a CLS token.
        final_norm: normalise the output of the last block.
        implementation: of the attention.

    Raises:
        ValueError: heads that do not divide the width, or MLPs without a hidden unit.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        mlp_ratio: float,
        *,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        attention_pool: bool = False,
        final_norm: bool = False,
        implementation: AttentionName = "auto",
    ) -> None:
        super().__init__()
        check_attention(implementation)
        if width % heads:
            raise ValueError(f"heads must divide the width, got {heads} heads and width {width}")
        if int(width * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {mlp_ratio} gives MLPs of width {width} no hidden unit; choose a larger one")
        # One after the other: a file that tells of billions of blocks is refused at the first it has no weights for.
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, dropout, drop_path * (i + 1) / layers, implementation) for i in range(layers)
        )
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.cls_token = None if attention_pool else nn.Parameter(torch.zeros(1, 1, width))
        self.pool = AttentionPool(width, heads, implementation) if attention_pool else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Args: tokens (B, N, width). Returns (B, width)."""
        x = self._all_but_last(tokens)
        if self.pool is None:
            # Only the CLS token of the last block is read, so only that is computed: two fifths less for two blocks.
            return self.norm(self.blocks[-1](x, 1))[:, 0]
        return self.pool(self.norm(self.blocks[-1](x)))

    def all_tokens(self, tokens: Tensor) -> Tensor:
        """What the transformer makes of each token, in place of a summary; a CLS token is one more that they see.

        Args: tokens (B, N, width). Returns (B, N, width).
        """
        x = self.norm(self.blocks[-1](self._all_but_last(tokens)))
        return x if self.cls_token is None else x[:, 1:]

    def shares(self, tokens: Tensor) -> Tensor:
        """How much of the last attention each token received: (B, N), each row sums to 1.

        With a CLS token this is its attention in the last block, without its attention to itself.
        """
        x = self._all_but_last(tokens)
        if self.pool is not None:
            return self.pool.log_weights(self.norm(self.blocks[-1](x))).softmax(dim=1)
        last = cast(Block, self.blocks[-1])
        # In logarithms: where a CLS token attends almost only to itself, the other weights are rounded to 0.
        return last.attn.first_token_log_weights(last.norm1(x))[:, 1:].softmax(dim=1)

    def _all_but_last(self, tokens: Tensor) -> Tensor:
        """The tokens at the input of the last block, with the CLS token first where there is one."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return tokens


def _log_weights(q: Tensor, k: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()
    return scores.log_softmax(dim=-1).logsumexp(dim=1)[:, 0] - math.log(q.shape[1])
