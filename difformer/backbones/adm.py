"""The family `adm`: the U-Nets of guided-diffusion (Dhariwal & Nichol 2021), for our weights and OpenAI's."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from difformer.backbones.encoder import Encoder
from difformer.backbones.families import ADM, FAMILIES
from difformer.checkpoints.hub import push_folder
from difformer.checkpoints.live import read_live
from difformer.checkpoints.sources import ConfigLike, ScheduleLike, as_schedule, describe, open_weights
from difformer.checkpoints.store import StoredBackbone, write_backbone
from difformer.checkpoints.weights import load_strictly, weights_digest
from difformer.config import UNetConfig
from difformer.diffusion import NoiseSchedule
from difformer.models import AttentionName, Prefix, UNet
from difformer.models.attention import check_attention
from difformer.models.precision import warn_if_emulated
from difformer.models.shapes import only_shapes
from difformer.taps import TapSpec

B = TypeVar("B", bound="UNetBackbone")


class UNetBackbone(nn.Module):
    """A frozen guided-diffusion U-Net with its noise schedule.

    The weights take no gradient, and the network stays in evaluation mode, even after `train()`. Gradients still flow
    through it to injected features.

    Args:
        unet: the network; frozen here.
        schedule: the noise it was trained with.
        name: what it is called.
        digest: SHA-256 of the stored weights. When left out, it is computed from the current weights at each access,
            and may change if they are shared with a network in training.
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

    @classmethod
    def open(
        cls: type[B],
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
    ) -> B:
        """Opens a backbone of this family; Args and Raises as `create_backbone`."""
        check_attention(attention)
        if not isinstance(name_or_path, str | os.PathLike | nn.Module):
            raise ValueError(
                f"a backbone is opened by name or path, or from a network, got {type(name_or_path).__name__}"
            )
        if isinstance(name_or_path, nn.Module):
            if config is not None or entry is not None or folder is not None or download:
                raise ValueError(
                    "a live network has its own configuration and weights; leave out config, entry, folder and download"
                )
            return cls._open_live(name_or_path, schedule, dtype, device, attention, gradient_checkpointing)
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
        source = str(name_or_path)
        unet = _build(stored.config, state, source, dtype, device or "cpu", attention, gradient_checkpointing)
        return cls(unet, stored.schedule, name=stored.name, digest=stored.digest, provenance=stored.provenance)

    @classmethod
    def _open_live(
        cls: type[B],
        network: nn.Module,
        schedule: ScheduleLike | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        attention: AttentionName,
        gradient_checkpointing: bool,
    ) -> B:
        if schedule is None:
            raise ValueError("a live network does not say its noise schedule; give schedule='linear' or 'cosine'")
        noise = as_schedule(schedule)
        state, config = read_live(network)
        name = type(network).__name__
        where = device or next(iter(state.values())).device
        unet = _build(config, state, name, dtype, where, attention, gradient_checkpointing)
        # The digest is of the full-precision weights, which half-precision copies have lost.
        digest = None if unet.dtype == torch.float32 else weights_digest(state)
        return cls(unet, noise, name=name, digest=digest)

    @classmethod
    def build(
        cls: type[B],
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        attention: AttentionName = "auto",
        folder: str | Path | None = None,
    ) -> B:
        """The architecture with random weights on torch's default device; named presets need no file.

        Args:
            name_or_path: a preset, weights that ship, or a file, whose values are not read.
            dtype, attention, folder: as for `create_backbone`.

        Raises:
            FileNotFoundError, CheckpointError, ValueError: as `create_backbone`.
        """
        config, schedule = describe(name_or_path, folder=Path(folder) if folder else None)
        unet = UNet(config, attention=attention).cast_torso(dtype or torch.float32)
        return cls(unet, schedule, name=str(name_or_path))

    @property
    def config(self) -> UNetConfig:
        """The architecture."""
        return self.unet.config

    @property
    def image_size(self) -> int:
        """Side in pixels of the images it was trained on."""
        return self.config.image_size

    @property
    def multiple(self) -> int:
        """The sides of images must be multiples of it."""
        return self.config.downsampling

    @property
    def conditioning(self) -> Mapping[str, int]:
        """`{"y": number of classes}` of a class-conditional network; otherwise empty."""
        return {} if self.config.num_classes is None else {"y": self.config.num_classes}

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass of DifFeed; may be switched at any time."""
        return self.unet.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.unet.gradient_checkpointing = value

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
        """SHA-256 of the stored weights, by which trained heads identify their backbone."""
        # Not cached: the weights of a live network may change.
        return weights_digest(self.unet.state_dict()) if self._digest is None else self._digest

    def describe(self) -> dict[str, Any]:
        """What identifies it, as JSON types; see `Backbone.describe`."""
        return {
            "family": ADM,
            "name": self.name,
            "digest": self.digest,
            "config": json.loads(json.dumps(asdict(self.config))),
            "schedule": self.schedule.to_dict(),
        }

    def train(self, mode: bool = True) -> "UNetBackbone":
        """Stays in evaluation mode."""
        return super().train(False)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the network's passes with `torch.compile`; see `UNet.compile`."""
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
        """The first part of a pass, for `forward_from`; see `UNet.forward_prefix`."""
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

    def as_encoder(self, taps: Iterable[str | int], t: int, *, seed: int = 0) -> Encoder:
        """Images to a list of maps with a `feature_info`, as timm's models give them with `features_only=True`. For
        backbones of other families, use `Encoder`.

        Raises:
            ValueError: as `Encoder`.
        """
        return Encoder(self, taps, t, seed=seed)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload backbone",
        licence: str | None = None,
    ) -> str:
        """Uploads what `save` writes, with a model card, to a Hugging Face repository, which is created when needed.
        `create_backbone("hf://owner/name", download=True)` opens it.

        Args:
            repo_id: `owner/name`, or `name` for a repository of your own.
            private: whether a new repository is private; the account's default when left out.
            token: of an account that may write there; the token of the last login when left out.
            branch: where the commit goes, created when needed; the main branch when left out.
            create_pr: propose the commit as a pull request.
            commit_message: first line of the commit.
            licence: of the weights, as the hub names it, such as apache-2.0.

        Returns:
            The address of the commit.
        """

        def write(folder: Path, name: str) -> None:
            self.save(folder / "model.safetensors")
            (folder / "README.md").write_text(self._card(name, licence), encoding="utf-8")

        where = {"private": private, "token": token, "branch": branch, "create_pr": create_pr}
        return push_folder(write, repo_id, commit_message=commit_message, **where)  # type: ignore[arg-type]

    def _card(self, repo_id: str, licence: str | None) -> str:
        lines = [
            "---",
            "library_name: difformer",
            "pipeline_tag: image-feature-extraction",
            *([] if licence is None else [f"license: {licence}"]),
            "---",
            f"A guided-diffusion (ADM) network for images of {self.config.image_size} pixels, as a backbone.",
            "",
            f"- weights: {sum(p.numel() for p in self.parameters()):,}, digest `{self.digest}`",
            f"- noise schedule: {self.schedule.name}, {self.schedule.num_timesteps} timesteps",
            *(f"- {name}: {value}" for name, value in self.provenance.items()),
            "",
            "```python",
            "from difformer import create_backbone",
            "",
            f'backbone = create_backbone("hf://{repo_id}", download=True)',
            "```",
            "",
        ]
        return "\n".join(lines)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes a self-describing safetensors file that `create_backbone` reads with no further arguments.

        Raises:
            FileExistsError: the file is there and may not be replaced.
            OSError: it cannot be written; what was there is untouched.
        """
        state = self.unet.state_dict()
        stored = StoredBackbone(self.name, self.config, self.schedule, weights_digest(state), self.provenance)
        write_backbone(Path(path), state, stored, overwrite=overwrite)


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
    warn_if_emulated(dtype, device)
    with only_shapes():
        unet = UNet(config, attention=attention, gradient_checkpointing=gradient_checkpointing)
    load_strictly(unet, state, source)
    return unet.float().cast_torso(dtype).to(device)


FAMILIES.register(ADM)(UNetBackbone)
