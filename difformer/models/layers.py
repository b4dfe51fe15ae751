"""The layers of the guided-diffusion U-Net, with OpenAI's state-dict names (Dhariwal & Nichol 2021).

Convolutions run in the torso's dtype, normalisation and embeddings in that of their own weights, which stays float32.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from difformer.config import NORM_GROUPS, UNetConfig
from difformer.models.attention import AttentionName, attention
from difformer.models.plan import ResPlan

_Conv = TypeVar("_Conv", nn.Conv1d, nn.Conv2d)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in its weights' precision, whatever the input's."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Downsample(nn.Module):
    """Halves a map, with a strided convolution or an average."""

    def __init__(self, channels: int, convolve: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolve else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles a map by repeating pixels, with or without a convolution after it."""

    def __init__(self, channels: int, convolve: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """A residual block conditioned on the timestep embedding, optionally resampling."""

    def __init__(self, plan: ResPlan, config: UNetConfig) -> None:
        super().__init__()
        width = plan.out_channels
        self.scale_shift = config.use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm(plan.in_channels), nn.SiLU(), nn.Conv2d(plan.in_channels, width, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(4 * config.model_channels, width * (2 if self.scale_shift else 1))
        )
        self.out_layers = nn.Sequential(
            GroupNorm(width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zero_init(nn.Conv2d(width, width, 3, padding=1)),
        )
        self.resample: nn.Module = nn.Identity()
        if plan.resample is not None:
            layer = Downsample if plan.resample == "down" else Upsample
            self.resample = layer(plan.in_channels, convolve=False)
        same = plan.in_channels == width
        self.skip_connection = nn.Identity() if same else nn.Conv2d(plan.in_channels, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Args: x (B, C, H, W); emb (B, 4 · model_channels). Returns (B, C', H', W')."""
        norm, _, convolution = self.in_layers
        h = convolution(self.resample(_silu(norm(x))))
        x = self.resample(x)
        embedded = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, _, dropout, convolution = self.out_layers
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            h = (norm(h) * (1 + scale)).add_(shift)
        else:
            h = norm(h + embedded)
        h = convolution(dropout(_silu(h)))
        return h.add_(self.skip_connection(x))


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a map, residual."""

    def __init__(self, channels: int, config: UNetConfig, implementation: AttentionName) -> None:
        super().__init__()
        self.heads = config.heads(channels)
        self.implementation: AttentionName = implementation
        # The two orders store the rows of `qkv` differently; nothing in the weights tells which.
        self.order = "three heads" if config.use_new_attention_order else "heads three"
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, C, H, W). Returns the same shape."""
        flat = x.flatten(2)
        # A row for each position before the projection: q, k and v then lie as fused kernels read them, and one map
        # is copied, where after the projection it would be three.
        rows = self.norm(flat).transpose(1, 2).contiguous()
        q, k, v = rearrange(
            _of_rows(self.qkv, rows), f"b n ({self.order} d) -> three b heads n d", three=3, heads=self.heads
        )
        h = rearrange(attention(q, k, v, implementation=self.implementation), "b heads n d -> b n (heads d)")
        return (flat + _of_rows(self.proj_out, h).transpose(1, 2)).view_as(x)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of timesteps (Vaswani et al. 2017, section 3.5, cosines first as in ADM).

    Args:
        t: (B,) timesteps, possibly fractional.
        width: channels of the result.

    Returns:
        (B, width) float32.
    """
    half = width // 2
    # In this order of operations: at t near 1000 the last bit of a frequency shows in the fourth digit.
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, width % 2))


def zero_init(layer: _Conv) -> _Conv:
    """Starts a residual branch at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _of_rows(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """A pointwise convolution of (B, N, C), where it would take (B, C, N)."""
    return F.linear(x, layer.weight.squeeze(2), layer.bias)


def _silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else reads: in its memory, unless the backward pass needs the old values."""
    return F.silu(x, inplace=not x.requires_grad)
