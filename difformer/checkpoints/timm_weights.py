"""Weights of networks of timm's, read without timm's own reader, whose older releases run what a pickle asks for."""

from pathlib import Path
from typing import Any

from torch import nn

from difformer.checkpoints.weights import CheckpointError, check_fits, read_weights, unwrapped

# Where timm's training keeps its state dicts, in the order in which timm takes them.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")


def load_timm_weights(network: nn.Module, path: Path, name: str) -> None:
    """Puts the weights of a file into a network, strictly; only a classifier that the network lacks is left out.

    Args:
        network: as `timm.create_model` returns it.
        path: a safetensors or `.pth` file.
        name: of the network, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no weight file, damaged, holds anything but tensors, or the weights of another network.
    """
    if path.suffix.lower() in (".npz", ".npy"):
        raise CheckpointError(f"{path} is a file of NumPy's; give weights of {name} as .safetensors or .pth")
    own: dict[str, Any] = network.state_dict()
    classifiers = getattr(network, "default_cfg", {}).get("classifier") or "head"
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers))
    found = unwrapped(read_weights(path, usual=_ENTRIES).state)
    # Files of old releases of torch do not count the batches of a batch normalisation; torch takes them too.
    counts = {key: tensor for key, tensor in own.items() if key.endswith("num_batches_tracked")}
    state = counts | {key: tensor for key, tensor in found.items() if key in own or not key.startswith(heads)}
    integers = {key for key, tensor in own.items() if not tensor.is_floating_point()}
    check_fits(state, {key: tuple(x.shape) for key, x in own.items()}, f"{path} for timm's {name}", integers=integers)
    network.load_state_dict(state)
