"""Deterministic weights and inputs, so that golden files need not store them."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def recipe_tensor(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The value of one named tensor: near 1 for norm scales, small for biases, fan-in scaled otherwise."""
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


def load_recipe(module: nn.Module, seed: int) -> nn.Module:
    """Fills every tensor of a module's state dict from the recipe."""
    state = module.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(recipe_tensor(name, tensor.shape, seed))
    return module


def recipe_input(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
