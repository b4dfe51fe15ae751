"""Per-image noise: eps as a pure function of (seed, image id, t).

A counter-based generator (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns
each element's coordinates into random bits, and Box-Muller turns those into normals. There is no state, so an image's
noise depends on nothing else: not on the batch, its order, the number of processes or the device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from difformer.config import as_integer
from difformer.diffusion.schedule import MAX_TIMESTEPS

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MAX_DRAW = 1 << 16


def image_noise(x_0: Tensor, ids: Tensor | Sequence[int], t: int | Tensor, *, seed: int = 0, draw: int = 0) -> Tensor:
    """Standard normal noise for each image of a batch, the same wherever and whenever it is drawn.

    Args:
        x_0: (B, ...) images; give the shape and the device.
        ids: (B,) the images' stable numbers, signed 64-bit integers.
        t: one timestep for the batch, or (B,) integers; in [0, 65536).
        seed: any 64-bit integer; a negative one is the same as its unsigned equivalent.
        draw: number of an independent draw for the same image and timestep, in [0, 65536).

    Returns:
        eps of the shape of `x_0`, float32, on its device. Equal across devices to float32 rounding.

    Raises:
        ValueError: ids, timesteps, seed or draw of the wrong type, number or range.
    """
    if not isinstance(x_0, Tensor) or not x_0.ndim:
        raise ValueError(
            f"x_0 must be a tensor (B, ...) of images, got {x_0 if isinstance(x_0, Tensor) else type(x_0)}"
        )
    batch, elements = x_0.shape[0], x_0[0].numel() if len(x_0) else 0
    ids = _integers("ids", ids, batch, x_0.device)
    t = _integers("t", t, batch, x_0.device)
    if batch and not 0 <= int(t.min()) <= int(t.max()) < MAX_TIMESTEPS:
        raise ValueError(f"t must lie in [0, {MAX_TIMESTEPS}), got {t.tolist()}")
    seed, draw = as_integer("seed", seed), as_integer("draw", draw)
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    if not 0 <= draw < _MAX_DRAW:
        raise ValueError(f"draw must lie in [0, {_MAX_DRAW}), got {draw}")

    # One counter yields four words, hence four normals.
    index = torch.arange(math.ceil(elements / 4), device=x_0.device)
    counter = (
        index[None],
        (t + (draw << 16))[:, None],
        (ids & _MASK)[:, None],
        ((ids >> 32) & _MASK)[:, None],
    )
    words = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    normals = torch.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=-1)
    return normals.flatten(1)[:, :elements].reshape(x_0.shape)


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words of random bits from four words of counter and two of key.

    Args:
        counter: four int64 tensors that broadcast together, with values in [0, 2**32).
        key: two integers in [0, 2**32).

    Returns:
        Four int64 tensors with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # An int64 product wraps modulo 2**64, so its bits are those of the unsigned product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals from two words of uniform bits (Box & Muller 1958)."""
    # The half keeps the logarithm's argument above 0; the smallest gives a radius of 6.8.
    radius = torch.sqrt(-2 * torch.log((u.float() + 0.5) * 2.0**-32))
    angle = v.float() * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _integers(name: str, values: int | Tensor | Sequence[int], batch: int, device: torch.device) -> Tensor:
    try:
        tensor = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be signed 64-bit integers, got {values!r}") from error
    if tensor.numel() == 0:
        tensor = tensor.long()
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {tensor.dtype}")
    if tensor.ndim == 0 and name == "t":
        tensor = tensor.expand(batch)
    if tensor.shape != (batch,):
        raise ValueError(f"{name} must be {batch} integers, one an image, got shape {tuple(tensor.shape)}")
    return tensor.long()
