"""The guided-diffusion (ADM) U-Net of Dhariwal & Nichol 2021, with features by name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from difformer.config import UNetConfig
from difformer.models.attention import AttentionName, check_attention
from difformer.models.compiling import can_compile
from difformer.models.layers import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    timestep_embedding,
    zero_init,
)
from difformer.models.plan import (
    AttentionPlan,
    BlockPlan,
    ResPlan,
    StemPlan,
    block_plans,
    tap_specs,
)
from difformer.taps import TapSpec, resolve_tap, resolve_taps

TORSO_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Prefix:
    """The beginning of a pass, from which others can continue.

    Attributes:
        h: what goes into the next block, (B, C, h, w) in the torso's dtype.
        emb: the timestep's (and label's) embedding, (B, 4 · model_channels).
        outputs: the output of each block so far, by tap name in network order.
    """

    h: Tensor
    emb: Tensor
    outputs: Mapping[str, Tensor]


class UNet(nn.Module):
    """A U-Net that denoises images, and returns the features of its blocks.

    The state-dict names are OpenAI's, so their checkpoints load strictly.

    Args:
        config: the architecture.
        attention: implementation for the self-attention; see `difformer.models.attention`.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Attributes:
        config: the architecture.
        taps: what it offers, by tap name in network order.
        gradient_checkpointing: may be switched at any time.
    """

    def __init__(
        self, config: UNetConfig, *, attention: AttentionName = "auto", gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        check_attention(attention)
        self.config = config
        self.taps: Mapping[str, TapSpec] = dict(tap_specs(config))
        self.gradient_checkpointing = gradient_checkpointing

        width = config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, 4 * width)
        plans = block_plans(config)
        blocks = [_Block(plan, config, attention) for plan in plans]
        encoder_blocks = len(blocks) // 2
        self.input_blocks = nn.ModuleList(blocks[:encoder_blocks])
        self.middle_block = blocks[encoder_blocks]
        self.output_blocks = nn.ModuleList(blocks[encoder_blocks + 1 :])
        last = plans[-1].out_channels
        self.out = nn.Sequential(
            GroupNorm(last), nn.SiLU(), zero_init(nn.Conv2d(last, config.out_channels, 3, padding=1))
        )

    def taps_at(self, height: int, width: int) -> dict[str, TapSpec]:
        """What it offers for images of a size, by tap name in network order: `taps` with the maps and costs there.

        Args:
            height, width: of the images in pixels, multiples of `config.downsampling`.

        Raises:
            ValueError: they are not.
        """
        return dict(tap_specs(self.config, (height, width)))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the convolutions."""
        return next(self.input_blocks.parameters()).dtype

    @property
    def _outer_dtype(self) -> torch.dtype:
        """Precision of what `cast_torso` leaves alone."""
        return next(self.time_embed.parameters()).dtype

    def cast_torso(self, dtype: torch.dtype) -> "UNet":
        """Converts the blocks' convolutions; normalisation, embeddings and the output layer keep their precision.

        Args:
            dtype: float32, bfloat16 or float16.

        Raises:
            ValueError: another dtype.
        """
        if dtype not in TORSO_DTYPES:
            raise ValueError(f"the torso's dtype must be one of {', '.join(map(str, TORSO_DTYPES))}, got {dtype}")
        for block in self._blocks():
            for module in block.modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)
        return self

    def compile(self, *args: Any, **options: Any) -> None:
        """Lets `torch.compile` build the passes, each when it first runs at images of another shape.

        In place: weights keep their names. Where there is no compiler, the log says so and nothing changes.

        Args:
            args, options: of `torch.compile`.
        """
        if not can_compile(next(self.parameters()).device):
            return
        for name in ("forward", "forward_taps", "forward_prefix", "forward_from"):
            setattr(self, name, torch.compile(getattr(self, name), *args, **options))

    def forward(self, x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Tensor:
        """Denoises.

        Args:
            x_t: (B, in_channels, H, W) noisy images; H and W multiples of `config.downsampling`.
            t: one timestep for the batch, or (B,); they go to the network as they are.
            y: (B,) integer class labels, if and only if the network is class-conditional.

        Returns:
            (B, out_channels, H, W) in the dtype of `x_t`: eps, followed by the variance's interpolation weights
            where sigma is learned.

        Raises:
            ValueError: sizes, timesteps or labels that do not fit.
        """
        h = x_t
        for _, feature in self._walk(self._start(x_t, t, y), {}):
            h = feature
        return self.out(h.to(self._outer_dtype)).to(x_t.dtype)

    def forward_taps(
        self,
        x_t: Tensor,
        t: int | Tensor,
        taps: Iterable[str | int],
        *,
        y: Tensor | None = None,
        inject: Mapping[str | int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Runs as far as the deepest tap asked for, and returns the features there.

        Args:
            x_t: (B, in_channels, H, W) noisy images; H and W multiples of `config.downsampling`.
            t: one timestep for the batch, or (B,).
            taps: tap names or 1-based block numbers, in any order.
            y: (B,) integer class labels, if and only if the network is class-conditional.
            inject: maps to add to the outputs of blocks, by tap: (B, C, h, w) with the block's channels, resized
                bilinearly when h, w differ. They are added before the output is read as a feature, kept as a skip
                or passed on.

        Returns:
            Tap name to (B, C, h, w) in the torso's dtype, in the order of the request.

        Raises:
            ValueError: an unknown, repeated or empty request; an injection that does not fit or would come after
                the deepest tap; sizes, timesteps or labels that do not fit.
        """
        self._check_images(x_t)
        wanted = resolve_taps(taps, self.taps)
        injected = self._resolve_inject(inject or {}, wanted, len(x_t))
        return self._continue(self._start(x_t, t, y), wanted, injected)

    def forward_prefix(self, x_t: Tensor, t: int | Tensor, last: str | int, *, y: Tensor | None = None) -> Prefix:
        """Runs up to and including an encoder block, so that several passes can continue from there.

        Args:
            x_t, t, y: as for `forward_taps`.
            last: the encoder tap to stop at.

        Raises:
            ValueError: `last` is not in the encoder; sizes, timesteps or labels that do not fit.
        """
        last = resolve_tap(last, self.taps)
        if self.taps[last].block > len(self.input_blocks):
            raise ValueError(f"a prefix must end in the encoder, at {next(iter(self.taps))} or later, not at {last}")
        start = self._start(x_t, t, y)
        outputs = {}
        for name, feature in self._walk(start, {}):
            outputs[name] = feature
            if name == last:
                break
        return Prefix(outputs[last], start.emb, outputs)

    def forward_from(
        self, prefix: Prefix, taps: Iterable[str | int], *, inject: Mapping[str | int, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Continues from a prefix as `forward_taps` would, and gives what it would give.

        Args:
            prefix: from `forward_prefix`; it is left as it is.
            taps: as for `forward_taps`; taps inside the prefix are answered from it.
            inject: as for `forward_taps`, at the prefix's last block or later.

        Raises:
            ValueError: as `forward_taps`, or an injection before the prefix's last block.
        """
        wanted = resolve_taps(taps, self.taps)
        injected = self._resolve_inject(inject or {}, wanted, len(prefix.h))
        for name in list(prefix.outputs)[:-1]:
            if name in injected:
                raise ValueError(f"inject names {name}, which comes before the end of the prefix")
        return self._continue(prefix, wanted, injected)

    def _continue(self, prefix: Prefix, wanted: tuple[str, ...], injected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = dict(prefix.outputs)
        last = next(reversed(outputs), None)
        if last is not None and last in injected:
            h = outputs[last] = prefix.h + _fit(injected[last], prefix.h)
            prefix = Prefix(h, prefix.emb, outputs)
        found = {tap: outputs[tap] for tap in wanted if tap in outputs}
        if len(found) < len(wanted):
            for name, feature in self._walk(prefix, injected):
                if name in wanted:
                    found[name] = feature
                if len(found) == len(wanted):
                    break
        return {tap: found[tap] for tap in wanted}

    def _start(self, x_t: Tensor, t: int | Tensor, y: Tensor | None) -> Prefix:
        self._check_images(x_t)
        batch = x_t.shape[0]
        labels = self._check_labels(y, batch)
        t = _as_tensor("t", t, x_t.device)
        if t.dtype == torch.bool or t.is_complex():
            raise ValueError(f"timesteps must be real numbers, got {t.dtype}")
        if t.ndim == 0:
            t = t.expand(batch)
        if t.shape != (batch,):
            raise ValueError(f"t must be one timestep or {batch} of them, got shape {tuple(t.shape)}")
        embedding = timestep_embedding(t, self.config.model_channels)
        emb: Tensor = self.time_embed(embedding.to(self._outer_dtype))
        if labels is not None:
            emb = emb + self.label_emb(labels.to(x_t.device))
        return Prefix(x_t.to(self.dtype), emb, {})

    def _walk(self, prefix: Prefix, inject: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Runs block after block, and pauses after each with its tap name and output."""
        h, skips = prefix.h, list(prefix.outputs.values())
        blocks = list(enumerate(zip(self.taps, self._blocks(), strict=True)))
        for index, (name, block) in blocks[len(skips) :]:
            if index > len(self.input_blocks):
                h = torch.cat([h, skips.pop()], dim=1)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = cast(Tensor, checkpoint(block, h, prefix.emb, use_reentrant=False))
            else:
                h = block(h, prefix.emb)
            if name in inject:
                h = h + _fit(inject[name], h)
            if index < len(self.input_blocks):
                skips.append(h)
            yield name, h

    def _blocks(self) -> Iterator["_Block"]:
        for block in (*self.input_blocks, self.middle_block, *self.output_blocks):
            yield cast(_Block, block)

    def _check_images(self, x_t: Tensor) -> None:
        channels, divisor = self.config.in_channels, self.config.downsampling
        if not isinstance(x_t, Tensor):
            raise ValueError(f"x_t must be a tensor (B, {channels}, H, W), got {type(x_t).__name__}")
        if x_t.ndim != 4 or x_t.shape[1] != channels or not x_t.is_floating_point():
            raise ValueError(
                f"x_t must be floating-point images of shape (B, {channels}, H, W), got {x_t.dtype} "
                f"of shape {tuple(x_t.shape)}"
            )
        height, width = x_t.shape[2:]
        if not height or not width or height % divisor or width % divisor:
            raise ValueError(f"image sides must be multiples of {divisor}, got {height}×{width}; resize or pad")

    def _check_labels(self, y: Tensor | Sequence[int] | None, batch: int) -> Tensor | None:
        classes = self.config.num_classes
        if classes is None:
            if y is not None:
                raise ValueError("this network is not class-conditional; leave y out")
            return None
        if y is None:
            raise ValueError(f"this network is class-conditional; give y, a label in [0, {classes}) for each image")
        y = _as_tensor("y", y, None)
        if y.shape != (batch,) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(f"y must be integers, one an image, got {y.dtype} of shape {tuple(y.shape)}")
        y = y.long()  # an embedding reads no shorter integers
        # Tensors without values, with which memory is counted, have no labels to check.
        stand_in = type(y) is not Tensor or y.is_meta
        if batch and not stand_in and not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise ValueError(f"labels must lie in [0, {classes}), got {y.tolist()}")
        return y

    def _resolve_inject(
        self, inject: Mapping[str | int, Tensor], wanted: tuple[str, ...], batch: int
    ) -> dict[str, Tensor]:
        deepest = max(wanted, key=lambda tap: self.taps[tap].block)
        resolved: dict[str, Tensor] = {}
        for key, value in inject.items():
            name = resolve_tap(key, self.taps)
            if name in resolved:
                raise ValueError(f"inject names {name} more than once")
            if self.taps[name].block > self.taps[deepest].block:
                raise ValueError(
                    f"inject names {name}, which comes after {deepest}, the deepest tap asked for, and would do nothing"
                )
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the injection at {name} must be a floating-point tensor, got {kind}")
            channels = self.taps[name].channels
            if value.ndim != 4 or value.shape[:2] != (batch, channels) or not value.shape[2] or not value.shape[3]:
                raise ValueError(
                    f"the injection at {name} must have shape ({batch}, {channels}, h, w), got {tuple(value.shape)}"
                )
            resolved[name] = value
        return resolved


class _Block(nn.ModuleList):
    """The layers of one tap."""

    def __init__(self, plan: BlockPlan, config: UNetConfig, attention: AttentionName) -> None:
        super().__init__()
        for layer in plan.layers:
            if isinstance(layer, StemPlan):
                self.append(nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1))
            elif isinstance(layer, ResPlan):
                self.append(ResBlock(layer, config))
            elif isinstance(layer, AttentionPlan):
                self.append(AttentionBlock(layer.channels, config, attention))
            else:
                resample = Downsample if layer.resample == "down" else Upsample
                self.append(resample(layer.channels, config.conv_resample))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
        return h


def _as_tensor(name: str, value: Any, device: torch.device | None) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a number or a tensor of numbers, got {value!r}") from error


def _fit(value: Tensor, h: Tensor) -> Tensor:
    """An injection in the size and dtype of what it is added to."""
    if value.shape[2:] != h.shape[2:]:
        value = F.interpolate(value, size=h.shape[2:], mode="bilinear", align_corners=False)
    return value.to(h.dtype)
