"""How attention runs: xformers where it is there and fits, else torch's fused attention, else plain mathematics.

The U-Net and the transformer heads both go through `attention`; nothing else decides.
"""

import importlib.util
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer._optional import require

AttentionName = Literal["auto", "xformers", "sdpa", "math"]


class AttentionUnavailable(RuntimeError):
    """The attention implementation asked for is not available here; the message says why."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, implementation: AttentionName = "auto") -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1).

    Fused kernels read along d: inputs that lie otherwise in memory are copied first, so lay them out with d last.

    Args:
        q: (B, heads, N, d).
        k, v: (B, heads, M, d), of the same floating dtype and device.
        implementation: "auto" picks the fastest that works; a name forces one.

    Returns:
        (B, heads, N, d), in the dtype of `q`.

    Raises:
        AttentionUnavailable: the implementation forced cannot run here.
        ValueError: no such implementation.
    """
    check_attention(implementation)
    if implementation == "math":
        # Scaling both sides before the product keeps float16 in range.
        scale = q.shape[-1] ** -0.25
        weights = (q * scale) @ (k * scale).transpose(-1, -2)
        precise = torch.promote_types(weights.dtype, torch.float32)
        return weights.to(precise).softmax(dim=-1).to(v.dtype) @ v
    # Without this, torch would take plain mathematics, which is slower, most of all where maps are large.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if implementation == "xformers":
        return _xformers(q, k, v)
    if implementation == "auto" and q.is_cuda:
        gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if _xformers_fits(q.device, q.dtype, q.shape[-1], gradient):
            return _xformers(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def check_attention(
    implementation: str,
    device: torch.device | str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    width: int = 64,
) -> None:
    """Checks early that an implementation is available.

    Args:
        implementation: its name.
        device: where it will run; only the name is checked when left out.
        dtype: of the queries.
        width: channels of a head.

    Raises:
        ValueError: no such implementation.
        AttentionUnavailable: it cannot run there.
    """
    if implementation not in get_args(AttentionName):
        raise ValueError(f"unknown attention {implementation!r}; expected one of {', '.join(get_args(AttentionName))}")
    if implementation == "xformers" and device is not None:
        probe = torch.zeros(1, 1, 8, width, dtype=dtype, device=device)
        _xformers(probe, probe, probe)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not q.is_cuda:
        raise AttentionUnavailable(
            f'xformers has no attention for {q.device.type} tensors; use attention="auto" (or "sdpa", "math") here'
        )
    try:
        ops = require("xformers.ops", 'attention="xformers"')
        # xformers keeps the heads third.
        out = ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    except torch.cuda.OutOfMemoryError:
        raise
    # A build for another torch or GPU raises errors of many kinds: NotImplementedError, RuntimeError, ….
    except Exception as error:
        raise AttentionUnavailable(
            f"xformers cannot run attention on {q.device} with {q.dtype} and head width {q.shape[-1]}: {error}"
        ) from error
    return out.transpose(1, 2)


@cache
def _xformers_fits(device: torch.device, dtype: torch.dtype, width: int, gradient: bool) -> bool:
    """Whether xformers runs this kind of attention on a device; tried once on tiny inputs, backwards too.

    Also with one query for many keys, which the last block of a fusion head needs.
    """
    try:
        if importlib.util.find_spec("xformers") is None:
            return False
        probe = torch.zeros(1, 1, 8, width, dtype=dtype, device=device, requires_grad=gradient)
        with torch.set_grad_enabled(gradient):
            for queries in (probe, probe[:, :, :1]):
                out = _xformers(queries, probe, probe)
                if gradient:
                    torch.autograd.grad(out.sum(), probe)
    # "auto" promises to work, so no failure of an optional library may get through.
    except Exception:
        return False
    return True
