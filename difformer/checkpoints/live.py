"""Taking weights and architecture from a live network: ours, or OpenAI's `guided_diffusion.unet.UNetModel`."""

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from difformer.checkpoints.architecture import see_architecture
from difformer.config import UNetConfig
from difformer.models import UNet

# Attributes of OpenAI's network that the weights do not show.
_ATTRIBUTES = ("image_size", "num_heads", "num_heads_upsample", "num_head_channels", "dropout", "middle_block")


def read_live(network: nn.Module) -> tuple[Mapping[str, Tensor], UNetConfig]:
    """Weights (shared with the network, not copied) and architecture of a live U-Net.

    Raises:
        ValueError: it is another kind of module, lacks what such a network has, or has a feature ours does not model.
        CheckpointError: its weights are not those of a guided-diffusion U-Net.
    """
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    if isinstance(network, UNet):
        return state, network.config
    kind = f"{type(network).__module__}.{type(network).__qualname__}"
    if type(network).__name__ != "UNetModel":
        raise ValueError(f"expected a difformer UNet or a guided_diffusion UNetModel, got {kind}")
    openai: Any = network
    missing = [name for name in _ATTRIBUTES if not hasattr(network, name)]
    attention = None
    with contextlib.suppress(TypeError, IndexError, KeyError, AttributeError):
        attention = openai.middle_block[1].attention
    if missing or attention is None:
        missing = missing or ["middle_block[1].attention"]
        raise ValueError(f"{kind} is not guided_diffusion's UNetModel: it has no {', '.join(missing)}")
    if openai.num_heads_upsample != openai.num_heads and openai.num_head_channels == -1:
        raise ValueError(
            f"{kind} has {openai.num_heads} heads in its encoder and {openai.num_heads_upsample} in its decoder; "
            "only equal numbers are supported"
        )
    per_head = openai.num_head_channels
    given = {
        "image_size": openai.image_size,
        "num_heads": openai.num_heads,
        "num_head_channels": None if per_head == -1 else per_head,
        # The class of the attention is the only trace of this flag.
        "use_new_attention_order": type(attention).__name__ == "QKVAttention",
        "dropout": float(openai.dropout),
    }
    return state, see_architecture(state, kind).complete(given)
