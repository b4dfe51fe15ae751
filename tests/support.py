"""Deterministic weights and inputs for the tests, and small networks to try things on."""

import copy
import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from difformer import UNet, UNetConfig
from difformer.checkpoints import read_weights
from difformer.checkpoints.store import content_digest

GOLDEN = Path(__file__).parent / "golden"

# What the weights of `small_config` cannot show.
UNSEEN = {"image_size": 32, "num_head_channels": 16, "use_new_attention_order": False}


def rewrite_metadata(path: Path, changes: dict[str, str | None]) -> None:
    """Changes entries in the metadata of one of our files, None taking one out, and signs it again: only what such a
    file says is then wrong, and not its digest."""
    weights = read_weights(path)
    metadata = {name: text for name, text in {**weights.metadata, **changes}.items() if text is not None}
    if metadata.get("format_version") != "1":
        metadata["content_sha256"] = content_digest(metadata)
    save_file(dict(weights.state), path, metadata)


def recipe_tensor(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The value of one named tensor: near 1 for norm scales, small for biases, fan-in scaled otherwise.

    The golden files were computed with these, so that they need not store weights.
    """
    rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    noise = rng.standard_normal(tuple(shape))
    if len(shape) > 1:
        value = noise / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif name.endswith("weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def load_recipe(module: nn.Module, seed: int) -> Any:
    """Fills every tensor of a module's state dict from the recipe."""
    for name, tensor in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(recipe_tensor(name, tensor.shape, seed))
    return module


def recipe_input(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def read_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and decoded metadata of a golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = {key: _decode(value) for key, value in (file.metadata() or {}).items()}
    return tensors, metadata


def _decode(value: str) -> Any:
    """Most of the metadata is JSON, some is plain words."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def config_from_openai(arguments: dict[str, Any]) -> UNetConfig:
    """Our configuration from the constructor arguments of OpenAI's network, where attention is placed by factors."""
    ours = dict(arguments)
    ours["attention_resolutions"] = [ours["image_size"] // factor for factor in ours["attention_resolutions"]]
    if ours.get("num_head_channels") == -1:
        ours["num_head_channels"] = None
    return UNetConfig(**ours)


def small_config(**changes: Any) -> UNetConfig:
    """A network of ADM's style that runs in milliseconds: three levels, 19 blocks."""
    arguments: dict[str, Any] = {
        "image_size": 32,
        "model_channels": 32,
        "channel_mult": (1, 1, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (16, 8),
        "num_head_channels": 16,
    }
    return UNetConfig(**(arguments | changes))


def small_unet(seed: int = 7, **changes: Any) -> UNet:
    """A small network with recipe weights, in evaluation mode."""
    return copy.deepcopy(_built(small_config(**changes), seed))


@cache
def _built(config: UNetConfig, seed: int) -> UNet:
    """Built once, since copying takes a third of the time."""
    network: UNet = load_recipe(UNet(config), seed).eval()
    return network


def tiny_unet(seed: int = 7, **changes: Any) -> UNet:
    """The smallest network with the blocks of a large one, for tests in which it only has to be there: 16 pixels, two
    levels, nine blocks, `in00` to `in03`, `mid` and `out00` to `out03`."""
    arguments = {"image_size": 16, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_resolutions": (8,)}
    return small_unet(seed, **(arguments | changes))


ADM256 = UNetConfig(256, 256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), num_head_channels=64)
