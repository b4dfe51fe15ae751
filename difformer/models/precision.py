"""What goes wrong in half precision: processors without it, and numbers beyond its range."""

import warnings

import torch
from torch import Tensor


def warn_if_emulated(dtype: torch.dtype, device: torch.device | str) -> None:
    """Warns where a CPU has no instructions for a half precision: its convolutions then take up to 80 times as long as
    in float32 (measured with AVX2 alone, torch 2.14).

    Args:
        dtype: of the computations.
        device: where they run.
    """
    if torch.device(device).type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if dtype in supported and not supported[dtype]():
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"this CPU has no instructions for {name}, in which convolutions take up to 80 times as long; compute in "
            "float32 (dtype=torch.float32; in a recipe backbone.dtype: float32 and training.precision: no)",
            # Here, so that it is said once.
            stacklevel=1,
        )


def finite(what: str, outputs: Tensor) -> Tensor:
    """What a head reads or gives, as it is.

    Raises:
        ValueError: one is not finite; the message says `what` they are.
    """
    if not outputs.isfinite().all():
        raise ValueError(
            f"{what} are not finite: weights of the head are damaged, or the backbone's precision overflows (open it "
            "with dtype float32)"
        )
    return outputs
