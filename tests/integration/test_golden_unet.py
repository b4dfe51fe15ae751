"""The network against numbers computed with OpenAI's own."""

import numpy as np
import pytest
import torch
from support import ADM256, config_from_openai, load_recipe, read_golden, recipe_input

from difformer import UNet


def open_golden(name, attention="auto"):
    tensors, metadata = read_golden(name)
    seed = metadata.pop("recipe_seed")
    return tensors, load_recipe(UNet(config_from_openai(metadata), attention=attention), seed).eval()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "math"])
@pytest.mark.parametrize("name", ["unet_adm_style", "unet_plain_style"])
def test_every_block_and_the_output_match(name, attention):
    tensors, unet = open_golden(name, attention)
    x, t, y = tensors["x"], tensors["t"], tensors.get("y")
    torch.testing.assert_close(unet(x, t, y), tensors["output"], rtol=0, atol=1e-4)
    features = unet.forward_taps(x, t, list(unet.taps), y=y)
    assert {f"block.{spec.block:02d}" for spec in unet.taps.values()} == {k for k in tensors if k[:6] == "block."}
    for tap, spec in unet.taps.items():
        torch.testing.assert_close(features[tap], tensors[f"block.{spec.block:02d}"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.slow
def test_full_size_adm256_matches():
    tensors, metadata = read_golden("unet_adm256_summary")
    unet = load_recipe(UNet(ADM256), metadata["recipe_seed"]).eval()
    x = recipe_input(metadata["x_seed"], 1, 3, 256, 256)
    features = unet.forward_taps(x, metadata["t"], list(unet.taps))
    for tap, spec in unet.taps.items():
        feature = features[tap].flatten()
        # The samples' places follow from the block: 503 is the first block's seed.
        index = torch.from_numpy(np.random.RandomState(502 + spec.block).randint(0, feature.numel(), 64))
        moments = torch.stack([feature.mean(), feature.std(), feature.abs().max()])
        torch.testing.assert_close(feature[index], tensors[f"block.{spec.block:02d}.samples"], rtol=0, atol=1e-4)
        torch.testing.assert_close(moments, tensors[f"block.{spec.block:02d}.moments"], rtol=1e-4, atol=1e-4)
