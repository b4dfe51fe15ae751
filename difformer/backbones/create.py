"""Opening backbones of any family."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from difformer.backbones.adm import UNetBackbone
from difformer.backbones.families import ADM, checked, find_family
from difformer.backbones.protocol import Backbone, switch_checkpointing
from difformer.checkpoints.sources import ConfigLike, ScheduleLike
from difformer.checkpoints.weights import CheckpointError
from difformer.models import AttentionName
from difformer.models.shapes import only_shapes


@overload
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
) -> UNetBackbone: ...


@overload
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
    family: str | None,
) -> Backbone: ...


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
    family: str | None = None,
) -> Backbone:
    """Opens a pretrained diffusion model as a frozen backbone.

    `config`, `schedule`, `entry` and live networks are for the family adm only.

    Args:
        name_or_path: a preset (`adm256_uncond`, …), weights that ship (`adm_elpv`, …), OpenAI's `.pt` or our
            safetensors by path, `hf://owner/name`, a live `UNet`, or a live `guided_diffusion.unet.UNetModel`. A live
            network's weights are shared with it if they are float32 and stay float32 on the same device; any other
            precision or device makes copies. For another family, what its `open` takes.
        config: needed for an unknown `.pt` only: the architecture, a preset's name, or a mapping with what the
            weights cannot show. If entries are missing, the error lists candidates. Known entries must agree.
        schedule: the noise it was trained with; needed for an unknown `.pt`, such as `NoiseSchedule.cosine(4000)`, and
            for live modules, where "linear" and "cosine" have 1000 steps. Otherwise a name must agree.
        dtype: float32 (default), bfloat16 or float16 for the convolutions; norms and embeddings stay float32.
        device: where it runs; by default the CPU, or the device of a live network.
        attention: "auto", "xformers", "sdpa" or "math".
        gradient_checkpointing: recompute activations in the backward pass of DifFeed.
        entry: for a `.pt` with several state dicts, such as "ema": which of them.
        folder: of named weights; by default `$DIFFORMER_CHECKPOINTS`, `checkpoints/`, the repository's `checkpoints/`
            and the cache are searched.
        download: whether weights that are not on this machine may be fetched.
        verify: check digests and checksums of files.
        family: adm (guided-diffusion's U-Nets), or one of your own as package.module:Name, which is imported.

    Raises:
        FileNotFoundError: the weights are not on this machine and may not be fetched.
        CheckpointError: the file is damaged, not a U-Net's, or something about it must be given; or another family
            cannot open it.
        ValueError: contradictory or unknown arguments.
        AttentionUnavailable: the attention named cannot run on the device.
    """
    how: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "attention": attention,
        "folder": folder,
        "download": download,
        "verify": verify,
    }
    if family is None or family == ADM:
        return UNetBackbone.open(
            name_or_path,
            config=config,
            schedule=schedule,
            entry=entry,
            gradient_checkpointing=gradient_checkpointing,
            **how,
        )
    if isinstance(name_or_path, nn.Module) or not (config is schedule is entry is None):
        raise ValueError(
            f"config, schedule, entry and live networks are for the family {ADM}; open a backbone of {family} by name "
            "or path alone"
        )
    kind = find_family(family)
    with _opening(name_or_path, family):
        backbone = kind.open(name_or_path, **how)
    backbone = checked(backbone, family)
    switch_checkpointing(backbone, gradient_checkpointing)
    return backbone


def outline_backbone(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    attention: AttentionName = "auto",
    folder: str | Path | None = None,
    family: str | None = None,
) -> Backbone:
    """A backbone on the meta device: shapes and costs, without weights. Named presets need no file.

    Args:
        name_or_path, dtype, attention, folder, family: as for `create_backbone`.

    Raises:
        FileNotFoundError, CheckpointError, ValueError, ImportError: as `create_backbone`.
    """
    with only_shapes():
        return build_random(name_or_path, dtype=dtype, attention=attention, folder=folder, family=family)


def build_random(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None,
    attention: AttentionName,
    folder: str | Path | None,
    family: str | None,
) -> Backbone:
    """A backbone with random weights on torch's default device, in place of one with trained weights.

    Args and Raises:
        As `outline_backbone`.
    """
    how: dict[str, Any] = {"dtype": dtype, "attention": attention, "folder": folder}
    if family is None or family == ADM:
        return UNetBackbone.build(name_or_path, **how)
    kind = find_family(family)
    with _opening(name_or_path, family):
        backbone = kind.build(name_or_path, **how)
    return checked(backbone, family)


@contextmanager
def _opening(name_or_path: str | Path, family: str) -> Iterator[None]:
    """Turns unexpected errors in the code of a custom family into a `CheckpointError` that names the family."""
    try:
        yield
    except (OSError, ValueError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"the family {family} cannot open {name_or_path}: {type(error).__name__}: {error}"
        ) from error
