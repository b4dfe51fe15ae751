"""Tokens from feature maps: pooling, normalisation, projection, and positions that fit any resolution."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import Size, sides

TokenNorm = Literal["layer", "batch", "channel"]

# Positions are measured on a grid of this many cells a side, for maps of any size.
_REFERENCE_SIDE = 16


class Tokenizer(nn.Module):
    """One token for each cell of a pooled map, in row-major order.

    Args:
        channels: of the map.
        size: of the map that the head is built for, a side or (h, w).
        width: of the tokens.
        pool: greatest side of the pooled map.
        norm: "layer" over (C, h', w') as published, "batch", or "channel": LayerNorm over the channels of each cell,
            which fits maps of any size.

    Raises:
        ValueError: unknown norm.
    """

    def __init__(self, channels: int, size: Size, width: int, pool: int, norm: TokenNorm) -> None:
        super().__init__()
        if norm not in get_args(TokenNorm):
            raise ValueError(f"unknown norm {norm!r}; expected one of {', '.join(get_args(TokenNorm))}")
        rows, columns = (min(side, pool) for side in sides(size))
        self.pool = pool
        # LayerNorm over the whole map ties the head to one size.
        self.cells = (rows, columns) if norm == "layer" else None
        if norm == "layer":
            self.norm: nn.Module = nn.LayerNorm([channels, rows, columns])
        else:
            self.norm = nn.BatchNorm2d(channels) if norm == "batch" else ChannelNorm(channels)
        self.project = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, C, h, w). Returns (B, width, h', w') with sides of at most `pool`."""
        return self.project(self.norm(F.adaptive_avg_pool2d(x, self.grid(x.shape[2], x.shape[3]))))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a map of these sides."""
        return self.cells or (min(height, self.pool), min(width, self.pool))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, C, h, w). Returns the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def sincos_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sine-cosine embedding of a map's cells in two dimensions (after Vaswani et al. 2017, section 3.5).

    Cells are placed by their centres on a common grid, so that the same position in the image has the same embedding at
    every resolution.

    Args:
        height, width: of the map in cells.
        channels: of the embedding, a multiple of 4: half for the rows, half for the columns.

    Returns:
        (height · width, channels) float32, in row-major order.
    """
    frequencies = torch.exp(-math.log(10000) * torch.arange(channels // 4, device=device) / (channels // 4))
    axes = []
    for cells in (height, width):
        centres = (torch.arange(cells, device=device) + 0.5) * (_REFERENCE_SIDE / cells)
        angles = centres[:, None] * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    rows, columns = axes[0][:, None].expand(-1, width, -1), axes[1][None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
