"""The baseline: OpenAI's network, run whole, once a timestep, with forward hooks on the blocks."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer._optional import require
from difformer.config import UNetConfig
from difformer.models import UNet


class HookedNetwork:
    """OpenAI's network as redistributed on PyPI, with the weights of ours.

    On a GPU it computes in its own fp16 mode, elsewhere in float32, as its scripts do.

    Args:
        unet: ours, whose weights it shares (on a GPU it has copies, since it converts them).
        device: where it runs.

    Attributes:
        taps: its blocks by the names of ours.

    Raises:
        ImportError: `guided-diffusion-sdk` is missing.
    """

    def __init__(self, unet: UNet, device: torch.device) -> None:
        with warnings.catch_warnings():
            # It uses decorators that torch has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            kind = require("guided_diffusion.unet", "the baseline", install="guided-diffusion-sdk").UNetModel
        half = device.type == "cuda"
        with device:
            network = kind(**openai_arguments(unet.config), use_fp16=half)
        network.load_state_dict(unet.state_dict(), strict=True, assign=not half)
        self.network: nn.Module = network.eval().requires_grad_(False)
        if half:
            network.convert_to_fp16()
        blocks = (*network.input_blocks, network.middle_block, *network.output_blocks)
        self.taps: dict[str, nn.Module] = dict(zip(unet.taps, blocks, strict=True))

    def features(self, x_t: Mapping[int, Tensor], taps: Sequence[str]) -> dict[tuple[str, int], Tensor]:
        """Runs the whole network on each timestep's images.

        Args:
            x_t: (B, 3, H, W) float32 noisy images by timestep.
            taps: names of blocks.

        Returns:
            (B, C, h, w) by tap and timestep.
        """
        found: dict[tuple[str, int], Tensor] = {}
        for t, noisy in x_t.items():
            with self._reading(taps) as outputs:
                self._run(noisy, t)
            found |= {(tap, t): outputs[tap] for tap in taps}
        return found

    def feedback_features(
        self, x_t: Tensor, t: int, mirrors: Mapping[str, str], layers: Sequence[nn.Module], tap: str
    ) -> Tensor:
        """DifFeed with two whole passes: the second with the decoder's features added to the encoder's.

        Args:
            x_t: (B, 3, H, W) float32 noisy images.
            t: their timestep.
            mirrors: encoder tap by decoder tap.
            layers: the feedback layers, in the same order.
            tap: the one to read in the second pass.

        Returns:
            (B, C, h, w), with gradients to the layers.
        """
        with torch.no_grad(), self._reading(tuple(mirrors)) as first:
            self._run(x_t, t)
        fed = {into: layer(first[name].float()) for layer, (name, into) in zip(layers, mirrors.items(), strict=True)}
        handles = [self.taps[into].register_forward_hook(partial(_add, feature)) for into, feature in fed.items()]
        try:
            with self._reading((tap,)) as outputs:
                self._run(x_t, t)
        finally:
            for handle in handles:
                handle.remove()
        return outputs[tap]

    def _run(self, x_t: Tensor, t: int) -> None:
        self.network(x_t, torch.full((len(x_t),), t, device=x_t.device))

    @contextmanager
    def _reading(self, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collects the outputs of blocks, after any other hook on them."""
        outputs: dict[str, Tensor] = {}
        handles = [self.taps[tap].register_forward_hook(partial(_keep, outputs, tap)) for tap in taps]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()


def openai_arguments(config: UNetConfig) -> dict[str, Any]:
    """The arguments of OpenAI's constructor for an architecture."""
    return {
        "image_size": config.image_size,
        "in_channels": config.in_channels,
        "model_channels": config.model_channels,
        "out_channels": config.out_channels,
        "num_res_blocks": config.num_res_blocks,
        # OpenAI gives factors of down-sampling.
        "attention_resolutions": tuple(config.image_size // side for side in config.attention_resolutions),
        "dropout": config.dropout,
        "channel_mult": config.channel_mult,
        "conv_resample": config.conv_resample,
        "num_classes": config.num_classes,
        "num_heads": config.num_heads,
        "num_head_channels": config.num_head_channels or -1,
        "use_scale_shift_norm": config.use_scale_shift_norm,
        "resblock_updown": config.resblock_updown,
        "use_new_attention_order": config.use_new_attention_order,
    }


def _keep(outputs: dict[str, Tensor], tap: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs[tap] = output


def _add(feature: Tensor, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    if feature.shape[2:] != output.shape[2:]:
        feature = F.interpolate(feature, size=output.shape[2:], mode="bilinear", align_corners=False)
    return output + feature.to(output.dtype)
