"""Backbones: frozen diffusion models that hand out features by name."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from difformer.checkpoints.live import read_live
from difformer.checkpoints.sources import ConfigLike, ScheduleLike, as_schedule, open_weights
from difformer.checkpoints.store import StoredBackbone, write_backbone
from difformer.checkpoints.weights import load_strictly, weights_digest
from difformer.config import UNetConfig
from difformer.diffusion import NoiseSchedule, Schedule
from difformer.models import AttentionName, Prefix, UNet
from difformer.models.attention import check_attention
from difformer.taps import TapSpec


@runtime_checkable
class Backbone(Protocol):
    """What a diffusion model must offer to be read: nothing above it needs more than this."""

    @property
    def taps(self) -> Mapping[str, TapSpec]:
        """The features it offers, by tap name in network order."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Gives the pair (a_t, s_t) of x_t = a_t x_0 + s_t eps."""
        ...

    @property
    def encode(self) -> Callable[[Tensor], Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to x_0: the identity for pixel models, a VAE's encoder for latent ones."""
        ...

    @property
    def forward_taps(self) -> Callable[..., dict[str, Tensor]]:
        """As `UNet.forward_taps(x_t, t, taps, *, inject=None)`; conditioning travels as further keywords."""
        ...


@runtime_checkable
class ResumableBackbone(Backbone, Protocol):
    """A backbone whose passes can share their beginning, which spares DifFeed the second computation of it."""

    @property
    def forward_prefix(self) -> Callable[..., Any]:
        """As `UNet.forward_prefix(x_t, t, last)`; conditioning travels as further keywords."""
        ...

    @property
    def forward_from(self) -> Callable[..., dict[str, Tensor]]:
        """As `UNet.forward_from(prefix, taps, *, inject=None)`."""
        ...


def check_backbone(backbone: object) -> None:
    """Raises ValueError for anything that is no backbone, such as a name or a bare network."""
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"a backbone is wanted, as create_backbone(name_or_path) opens one, got {type(backbone).__name__}; of a "
            "network, create_backbone(network, schedule=…) makes one"
        )


class UNetBackbone(nn.Module):
    """A frozen guided-diffusion U-Net with its noise schedule.

    The weights take no gradient, and the network stays in evaluation mode whatever `train()` says. Gradients still
    flow through it, to whatever is injected.

    Args:
        unet: the network; frozen here.
        schedule: the noise it was trained with.
        name: what it is called.
        digest: SHA-256 of its weights as they were stored. When it is left out, it is that of the weights the network
            has whenever it is asked for, which may change where they are shared with a network in training.
        provenance: where the weights came from.
    """

    def __init__(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        *,
        name: str = "unnamed",
        digest: str | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.schedule = schedule
        self.name = name
        self.provenance = dict(provenance or {})
        self._digest = digest
        self.train(False)

    @property
    def config(self) -> UNetConfig:
        """The architecture."""
        return self.unet.config

    @property
    def taps(self) -> Mapping[str, TapSpec]:
        """The features it offers, by tap name in network order."""
        return self.unet.taps

    def taps_at(self, height: int, width: int) -> dict[str, TapSpec]:
        """The same for images of another size; see `UNet.taps_at`."""
        return self.unet.taps_at(height, width)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the convolutions, and of the features."""
        return self.unet.dtype

    @property
    def digest(self) -> str:
        """SHA-256 of the weights as they were stored, by which trained heads know their backbone."""
        # Not kept: the weights of a live network may have moved on.
        return weights_digest(self.unet.state_dict()) if self._digest is None else self._digest

    def train(self, mode: bool = True) -> "UNetBackbone":
        """Stays in evaluation mode."""
        return super().train(False)

    def compile(self, *args: Any, **options: Any) -> None:
        """Lets `torch.compile` build the network's passes; see `UNet.compile`."""
        self.unet.compile(*args, **options)

    def encode(self, images: Tensor) -> Tensor:
        """The images themselves, (B, 3, H, W) in [-1, 1]: the network works on pixels."""
        return images

    def forward(self, x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Tensor:
        """Denoises at timesteps of the schedule; see `UNet.forward`."""
        return self.unet(x_t, self.schedule.network_time(t), y)

    def forward_taps(
        self,
        x_t: Tensor,
        t: int | Tensor,
        taps: Iterable[str | int],
        *,
        y: Tensor | None = None,
        inject: Mapping[str | int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Features by tap name, in the order of the request; see `UNet.forward_taps`."""
        return self.unet.forward_taps(x_t, self.schedule.network_time(t), taps, y=y, inject=inject)

    def forward_prefix(self, x_t: Tensor, t: int | Tensor, last: str | int, *, y: Tensor | None = None) -> Prefix:
        """The beginning of a pass, for `forward_from`; see `UNet.forward_prefix`."""
        return self.unet.forward_prefix(x_t, self.schedule.network_time(t), last, y=y)

    def forward_from(
        self, prefix: Prefix, taps: Iterable[str | int], *, inject: Mapping[str | int, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Features of a pass that continues from a prefix; see `UNet.forward_from`."""
        return self.unet.forward_from(prefix, taps, inject=inject)

    def __repr__(self) -> str:
        first, *_, last = self.taps
        weights = sum(p.numel() for p in self.parameters())
        return (
            f"UNetBackbone({self.name!r}: {self.config.image_size} pixels, {len(self.taps)} taps {first} … {last}, "
            f"{weights:,} weights, {self.dtype} on {next(self.parameters()).device})"
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes a self-describing safetensors file that `create_backbone` reads with no further arguments.

        Raises:
            FileExistsError: the file is there and may not be replaced.
            OSError: it cannot be written; what was there is untouched.
        """
        state = self.unet.state_dict()
        stored = StoredBackbone(self.name, self.config, self.schedule, weights_digest(state), self.provenance)
        write_backbone(Path(path), state, stored, overwrite=overwrite)


def create_backbone(
    name_or_path: str | Path | nn.Module,
    *,
    config: ConfigLike | str | None = None,
    schedule: ScheduleLike | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    attention: AttentionName = "auto",
    gradient_checkpointing: bool = False,
    entry: str | None = None,
    folder: str | Path | None = None,
    download: bool = False,
    verify: bool = True,
) -> UNetBackbone:
    """Opens a pretrained diffusion model as a frozen backbone.

    Args:
        name_or_path: a preset (`adm256_uncond`, …), weights that ship (`adm_elpv`, …), OpenAI's `.pt` or our
            safetensors by path, `hf://owner/name`, a live `UNet`, or a live `guided_diffusion.unet.UNetModel`. A live
            network's weights are shared with it where they are float32 and stay so on the same device; any other
            precision or device makes copies.
        config: needed for an unknown `.pt` only: the architecture, a preset's name, or a mapping with what the
            weights cannot show. What is missing is asked for with candidates. What is known already must agree.
        schedule: the noise it was trained with; needed for an unknown `.pt`, such as `NoiseSchedule.cosine(4000)`, and
            for live modules, where "linear" and "cosine" have 1000 steps. Elsewhere a name must agree.
        dtype: float32 (default), bfloat16 or float16 for the convolutions; norms and embeddings stay float32.
        device: where it is to run; by default the CPU, or where a live network is.
        attention: "auto", "xformers", "sdpa" or "math".
        gradient_checkpointing: recompute activations in the backward pass of DifFeed.
        entry: for a `.pt` with several state dicts, such as "ema": which of them.
        folder: where named weights lie; by default `$DIFFORMER_CHECKPOINTS`, `checkpoints/`, the repository's
            `checkpoints/` and the cache are searched.
        download: whether weights that are not on this machine may be fetched.
        verify: check digests and checksums of files.

    Raises:
        FileNotFoundError: the weights are not on this machine and may not be fetched.
        CheckpointError: the file is damaged, not a U-Net's, or something about it must be given.
        ValueError: contradictory or unknown arguments.
        AttentionUnavailable: the attention named cannot run on the device.
    """
    check_attention(attention)
    if not isinstance(name_or_path, str | os.PathLike | nn.Module):
        raise ValueError(f"a backbone is opened by name or path, or from a network, got {type(name_or_path).__name__}")
    if isinstance(name_or_path, nn.Module):
        if config is not None or entry is not None or folder is not None or download:
            raise ValueError(
                "a live network brings its configuration and weights; leave config out, and entry, folder and download"
            )
        return _open_live(name_or_path, schedule, dtype, device, attention, gradient_checkpointing)
    state, stored = open_weights(
        name_or_path,
        preset=config if isinstance(config, str) else None,
        config=None if isinstance(config, str) else config,
        schedule=schedule,
        entry=entry,
        folder=Path(folder) if folder else None,
        download=download,
        verify=verify,
    )
    unet = _build(stored.config, state, str(name_or_path), dtype, device or "cpu", attention, gradient_checkpointing)
    return UNetBackbone(unet, stored.schedule, name=stored.name, digest=stored.digest, provenance=stored.provenance)


def _open_live(
    network: nn.Module,
    schedule: ScheduleLike | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    attention: AttentionName,
    gradient_checkpointing: bool,
) -> UNetBackbone:
    if schedule is None:
        raise ValueError("a live network does not say its noise schedule; give schedule='linear' or 'cosine'")
    noise = as_schedule(schedule)
    state, config = read_live(network)
    name = type(network).__name__
    unet = _build(config, state, name, dtype, device or _device(state), attention, gradient_checkpointing)
    # Half-precision copies have lost what the digest is taken of.
    digest = None if unet.dtype == torch.float32 else weights_digest(state)
    return UNetBackbone(unet, noise, name=name, digest=digest)


def _build(
    config: UNetConfig,
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
    attention: AttentionName,
    gradient_checkpointing: bool,
) -> UNet:
    dtype = dtype or torch.float32
    width = config.level_channels[-1]
    check_attention(attention, device, dtype=dtype, width=width // config.heads(width))
    with torch.device("meta"):
        unet = UNet(config, attention=attention, gradient_checkpointing=gradient_checkpointing)
    load_strictly(unet, state, source)
    return unet.float().cast_torso(dtype).to(device)


def _device(state: Mapping[str, Tensor]) -> torch.device:
    return next(iter(state.values())).device
