"""The plan of a U-Net: every block's layers, shapes and cost, from its configuration alone.

The network builds its modules from this plan, and the table of its taps comes from it too, so the two agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from difformer.config import Size, UNetConfig, as_size, sides, size_of
from difformer.taps import TapSpec, tap_names

Resample = Literal["down", "up"]


@dataclass(frozen=True)
class StemPlan:
    """The first convolution, from image channels to the network's width."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class ResPlan:
    """A residual block; `resample` halves or doubles the map inside it."""

    in_channels: int
    out_channels: int
    resample: Resample | None = None


@dataclass(frozen=True)
class AttentionPlan:
    """Self-attention over the positions of a map."""

    channels: int


@dataclass(frozen=True)
class ResamplePlan:
    """A plain down- or up-sampling layer, with a convolution where the configuration asks for one."""

    channels: int
    resample: Resample


LayerPlan = StemPlan | ResPlan | AttentionPlan | ResamplePlan


@dataclass(frozen=True)
class BlockPlan:
    """One tap's block.

    Attributes:
        name: its tap name.
        level: the level its input lives on (0 is the finest): its input's sides are the image's over 2**level.
        layers: what it runs, in order.
        skip_channels: channels it takes from the encoder by concatenation, 0 outside the decoder.
    """

    name: str
    level: int
    layers: tuple[LayerPlan, ...]
    skip_channels: int = 0

    @property
    def out_channels(self) -> int:
        last = self.layers[-1]
        return last.out_channels if isinstance(last, StemPlan | ResPlan) else last.channels

    @property
    def out_level(self) -> int:
        """The level of its output."""
        steps = {"down": 1, "up": -1, None: 0}
        return self.level + sum(steps[getattr(layer, "resample", None)] for layer in self.layers)


def block_plans(config: UNetConfig) -> tuple[BlockPlan, ...]:
    """Every block in network order: encoder, bottleneck, decoder."""
    encoder = _encoder(config)
    width = encoder[-1].out_channels
    depth = len(config.channel_mult) - 1
    middle = BlockPlan("mid", depth, (ResPlan(width, width), AttentionPlan(width), ResPlan(width, width)))
    return (*encoder, middle, *_decoder(config, [block.out_channels for block in encoder]))


def tap_specs(config: UNetConfig, size: Size | None = None) -> Mapping[str, TapSpec]:
    """The taps of a configuration in network order, with shapes and cumulative cost.

    Args:
        config: the architecture.
        size: of the images; that of the configuration when None.

    Raises:
        ValueError: the network takes no images of that size.
    """
    height, width = sides(config.image_size if size is None else as_size("the image size", size))
    if height % config.downsampling or width % config.downsampling:
        raise ValueError(
            f"image sides must be multiples of {config.downsampling} for this network, got {height}×{width}; choose "
            "another size"
        )
    specs = {}
    flops = embedding_flops(config)
    for number, plan in enumerate(block_plans(config), start=1):
        flops += block_flops(config, plan, height, width)
        size = size_of(height >> plan.out_level, width >> plan.out_level)
        specs[plan.name] = TapSpec(plan.name, number, plan.out_channels, size, flops)
    return MappingProxyType(specs)


def embedding_flops(config: UNetConfig) -> int:
    """Cost of one timestep's embedding: two linear layers."""
    width = config.model_channels
    return 2 * (width * 4 * width + 4 * width * 4 * width)


def block_flops(config: UNetConfig, plan: BlockPlan, height: int, width: int) -> int:
    """Cost of one block for one image of a size that the network takes."""
    total, level = 0, plan.level
    for layer in plan.layers:
        if getattr(layer, "resample", None) is not None:
            level += 1 if layer.resample == "down" else -1  # type: ignore[union-attr]
        positions = (height >> level) * (width >> level)
        if isinstance(layer, StemPlan):
            total += _conv_flops(layer.in_channels, layer.out_channels, positions)
        elif isinstance(layer, ResPlan):
            # Resampling comes before the first convolution, so all of them run at the output's size.
            total += _conv_flops(layer.in_channels, layer.out_channels, positions)
            total += _conv_flops(layer.out_channels, layer.out_channels, positions)
            if layer.in_channels != layer.out_channels:
                total += _conv_flops(layer.in_channels, layer.out_channels, positions, kernel=1)
            # The linear layer of the embedding.
            total += 2 * 4 * config.model_channels * layer.out_channels * (2 if config.use_scale_shift_norm else 1)
        elif isinstance(layer, AttentionPlan):
            # The projections, then the two products of the attention.
            total += _conv_flops(layer.channels, 4 * layer.channels, positions, kernel=1)
            total += 2 * 2 * positions**2 * layer.channels
        elif config.conv_resample:
            total += _conv_flops(layer.channels, layer.channels, positions)
    return total


def _conv_flops(in_channels: int, out_channels: int, positions: int, kernel: int = 3) -> int:
    return 2 * in_channels * out_channels * kernel**2 * positions


def _encoder(config: UNetConfig) -> list[BlockPlan]:
    widths = config.level_channels
    names = iter(tap_names(len(widths) * (config.num_res_blocks + 1)))
    channels = widths[0]
    blocks = [BlockPlan(next(names), 0, (StemPlan(config.in_channels, channels),))]
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            blocks.append(BlockPlan(next(names), level, _res_and_attention(config, level, channels, width)))
            channels = width
        if level < len(widths) - 1:
            blocks.append(BlockPlan(next(names), level, (_resample(config, channels, "down"),)))
    return blocks


def _decoder(config: UNetConfig, skips: list[int]) -> list[BlockPlan]:
    widths = config.level_channels
    names = tap_names(len(skips))[len(skips) + 1 :]
    blocks: list[BlockPlan] = []
    channels = skips[-1]
    for level in reversed(range(len(widths))):
        for position in range(config.num_res_blocks + 1):
            skip = skips.pop()
            layers = _res_and_attention(config, level, channels + skip, widths[level])
            channels = widths[level]
            if level and position == config.num_res_blocks:
                layers = (*layers, _resample(config, channels, "up"))
            blocks.append(BlockPlan(names[len(blocks)], level, layers, skip))
    return blocks


def _res_and_attention(config: UNetConfig, level: int, channels: int, width: int) -> tuple[LayerPlan, ...]:
    res = ResPlan(channels, width)
    return (res, AttentionPlan(width)) if config.attends(level) else (res,)


def _resample(config: UNetConfig, channels: int, direction: Resample) -> LayerPlan:
    if config.resblock_updown:
        return ResPlan(channels, channels, direction)
    return ResamplePlan(channels, direction)
