"""What a diffusion model must offer to be read, and what it may offer in addition."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from difformer.config import Size
from difformer.diffusion import Schedule
from difformer.taps import TapSpec


@runtime_checkable
class Backbone(Protocol):
    """What a diffusion model must offer to be read; the rest of the package requires only this."""

    @property
    def name(self) -> str:
        """Its name, by which its family's `open` finds weights in the usual folders."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the stored weights, by which trained heads and caches identify their backbone."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which it computes."""
        ...

    @property
    def image_size(self) -> Size | None:
        """Side in pixels of the images it was trained on, (h, w) if they were not square; None if it is not known."""
        ...

    @property
    def multiple(self) -> int:
        """The sides of images must be multiples of it."""
        ...

    @property
    def conditioning(self) -> Mapping[str, int]:
        """What it is conditioned on besides noise and timestep: the number of classes by keyword of its passes. Each
        keyword must be given, as class numbers (B,) int64. Empty for most backbones."""
        ...

    @property
    def taps(self) -> Mapping[str, TapSpec]:
        """The features it offers, by tap name in network order, with maps and costs for images of its own size."""
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
        """As `UNet.forward_taps(x_t, t, taps, *, inject=None)`; conditioning is passed as further keywords."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies it, as JSON types: `family` (a name in `FAMILIES`, or package.module:Name), `name`, `digest`,
        `config` (the architecture) and `schedule`, and anything else that its features depend on. The same weights give
        other features under another configuration."""
        ...


@runtime_checkable
class SizedBackbone(Protocol):
    """A backbone that gives its taps for images of other sizes itself, instead of having them estimated from its
    `taps`; see `difformer.features.sizes.taps_at`."""

    def taps_at(self, height: int, width: int) -> Mapping[str, TapSpec]:
        """Its `taps`, with maps and costs for images of a size in pixels; ValueError for a size it does not take."""
        ...


@runtime_checkable
class ResumableBackbone(Protocol):
    """A backbone whose passes can share their first part, so that DifFeed computes it only once."""

    @property
    def forward_prefix(self) -> Callable[..., Any]:
        """As `UNet.forward_prefix(x_t, t, last)`; conditioning is passed as further keywords."""
        ...

    @property
    def forward_from(self) -> Callable[..., dict[str, Tensor]]:
        """As `UNet.forward_from(prefix, taps, *, inject=None)`."""
        ...


@runtime_checkable
class CheckpointingBackbone(Protocol):
    """A backbone that can save memory in DifFeed at the cost of time.

    Attributes:
        gradient_checkpointing: recompute activations in the backward pass; may be switched at any time.
    """

    gradient_checkpointing: bool


@runtime_checkable
class StoringBackbone(Protocol):
    """A backbone that can write its weights as a file that `create_backbone` opens."""

    def save(self, path: Path) -> None:
        """Writes the file, which is not there yet.

        Raises:
            OSError: it cannot be written.
        """
        ...


class DenoisingBackbone(Backbone, Protocol):
    """A backbone that can also generate; see `as_denoiser`."""

    def forward(self, x_t: Tensor, t: int | Tensor, **conditioning: Tensor) -> Tensor:
        """The network's output for noisy images at timesteps of the schedule.

        Args:
            x_t: (B, C, H, W).
            t: one timestep for the batch, or (B,).
            conditioning: what it is conditioned on, one row an image.

        Returns:
            (B, C, H, W) predicted noise, or (B, 2 C, H, W) with the variance's interpolation after it.
        """
        ...


_MEMBERS = (
    "name", "digest", "dtype", "image_size", "multiple", "conditioning", "taps", "schedule", "encode", "forward_taps",
    "describe",
)  # fmt: skip


def check_backbone(backbone: object) -> None:
    """Raises ValueError for anything that is no backbone, such as a name or a bare network."""
    # Not by isinstance, which would evaluate properties, such as the digest of a whole network.
    missing = [name for name in _MEMBERS if not hasattr(type(backbone), name) and not hasattr(backbone, name)]
    if missing:
        raise ValueError(
            f"expected a backbone, as create_backbone(name_or_path) opens one, got {type(backbone).__name__}; it "
            f"lacks {', '.join(missing)}. For a network, use create_backbone(network, schedule=…)"
        )


def device_of(backbone: Backbone) -> torch.device:
    """Where a backbone's weights are; the CPU for one that has none."""
    weights = backbone.parameters() if isinstance(backbone, nn.Module) else iter(())
    return next((tensor.device for tensor in weights), torch.device("cpu"))


def as_denoiser(backbone: Backbone) -> DenoisingBackbone | None:
    """The same backbone as one that generates; None if it does not define `forward`."""
    own = getattr(type(backbone), "forward", nn.Module.forward) is not nn.Module.forward
    return cast(DenoisingBackbone, backbone) if own else None


def switch_checkpointing(backbone: Backbone, wanted: bool) -> None:
    """Switches gradient checkpointing on or off.

    Raises:
        ValueError: it should be on, and the backbone does not offer it.
    """
    if isinstance(backbone, CheckpointingBackbone):
        backbone.gradient_checkpointing = wanted
    elif wanted:
        raise ValueError(
            f"{type(backbone).__name__} has no gradient_checkpointing to switch; leave out "
            "backbone.gradient_checkpointing"
        )


def compile_backbone(backbone: Backbone) -> None:
    """Compiles a backbone's passes with `torch.compile`.

    Raises:
        ValueError: it does not define `compile`. The inherited `nn.Module.compile` would compile only `forward`, which
            reads no features.
    """
    method: Any = getattr(type(backbone), "compile", nn.Module.compile)
    if method is nn.Module.compile:
        raise ValueError(
            f"{type(backbone).__name__} does not define compile for its passes; leave out backbone.compile"
        )
    method(backbone)
