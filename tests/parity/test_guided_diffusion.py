"""Against OpenAI's own network, as redistributed on PyPI (the `parity` extra)."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import load_recipe, recipe_input

from difformer import PRESETS, NoiseSchedule, UNet, create_backbone, q_sample
from difformer.checkpoints.live import read_live

pytestmark = pytest.mark.parity


@st.composite
def networks(draw):
    """Constructor arguments of OpenAI's network, over everything ours must match."""
    levels = draw(st.integers(1, 3))
    heads = draw(st.sampled_from([{"num_heads": 1}, {"num_heads": 4}, {"num_head_channels": 8}]))
    mults = draw(st.lists(st.sampled_from([0.5, 1, 2]), min_size=levels, max_size=levels))
    return {
        "image_size": 16,
        "in_channels": draw(st.sampled_from([1, 3])),
        "model_channels": 64,
        "out_channels": draw(st.sampled_from([3, 6])),
        "num_res_blocks": draw(st.integers(1, 2)),
        "attention_resolutions": tuple(draw(st.sets(st.sampled_from([1, 2, 4])))),
        "channel_mult": tuple(mults),
        "conv_resample": draw(st.booleans()),
        "num_classes": draw(st.sampled_from([None, 5])),
        "use_scale_shift_norm": draw(st.booleans()),
        "resblock_updown": draw(st.booleans()),
        "use_new_attention_order": draw(st.booleans()),
        **heads,
    }


def build_openai(arguments):
    from guided_diffusion.unet import UNetModel

    return load_recipe(UNetModel(**arguments), seed=11).eval()


def hook_blocks(network):
    """Collects what OpenAI's blocks put out during a forward pass."""
    outputs = []
    for block in (*network.input_blocks, network.middle_block, *network.output_blocks):
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


@settings(max_examples=30, deadline=None, derandomize=True)
@given(arguments=networks(), size=st.sampled_from([(16, 16), (8, 24)]), steps=st.tuples(*[st.integers(0, 999)] * 2))
def test_blocks_outputs_and_gradients_agree(arguments, size, steps):
    theirs = build_openai(arguments)
    state, config = read_live(theirs)
    ours = UNet(config).eval()
    ours.load_state_dict(state)
    x = recipe_input(5, 2, config.in_channels, *size)
    t = torch.tensor(steps)
    y = None if config.num_classes is None else torch.tensor([0, 4])

    blocks, inputs = hook_blocks(theirs), [x.clone().requires_grad_() for _ in range(2)]
    expected, found = theirs(inputs[0], t, y), ours(inputs[1], t, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    features = ours.forward_taps(x, t, list(ours.taps), y=y)
    for feature, block in zip(features.values(), blocks, strict=True):
        torch.testing.assert_close(feature, block, rtol=1e-4, atol=1e-4)

    weights = recipe_input(6, *found.shape)
    for output in (expected, found):
        (output * weights).sum().backward()
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **close)
    for (name, mine), (other, reference) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(mine.grad, reference.grad, **close)


@torch.no_grad()
def test_half_precision_agrees_with_their_half_precision():
    arguments = {
        "image_size": 32, "in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 2,
        "attention_resolutions": (2, 4), "channel_mult": (1, 1, 2), "num_head_channels": 8, "resblock_updown": True,
        "use_scale_shift_norm": True, "use_fp16": True,
    }  # fmt: skip
    theirs = build_openai(arguments)
    ours = create_backbone(theirs, schedule="linear", dtype=torch.float16)
    theirs.convert_to_fp16()
    assert {n for n, p in theirs.named_parameters() if p.dtype == torch.float16} == {
        n for n, p in ours.unet.named_parameters() if p.dtype == torch.float16
    }
    blocks, x, t = hook_blocks(theirs), recipe_input(5, 2, 3, 32, 32), torch.tensor([90, 300])
    theirs(x, t)
    for feature, block in zip(ours.forward_taps(x, t, list(ours.taps)).values(), blocks, strict=True):
        error = (feature.float() - block.float()).norm() / block.float().norm()
        assert error < 3e-3


def test_a_live_network_opens_as_a_backbone():
    theirs = build_openai(
        {"image_size": 16, "in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
         "attention_resolutions": (2,), "channel_mult": (1, 2), "num_heads": 2, "dropout": 0.1}
    )  # fmt: skip
    backbone = create_backbone(theirs, schedule="cosine")
    assert backbone.config.num_heads == 2
    assert backbone.config.dropout == 0.1
    assert backbone.config.attention_resolutions == (8,)
    x = recipe_input(1, 2, 3, 16, 16)
    torch.testing.assert_close(backbone(x, 7), theirs(x, torch.tensor([7, 7])), rtol=1e-4, atol=1e-5)


def test_networks_with_more_heads_in_the_decoder_are_refused():
    theirs = build_openai(
        {"image_size": 16, "in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
         "attention_resolutions": (2,), "channel_mult": (1, 2), "num_heads": 2, "num_heads_upsample": 4}
    )  # fmt: skip
    with pytest.raises(ValueError, match="2 heads in its encoder and 4 in its decoder"):
        create_backbone(theirs, schedule="linear")


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_and_q_sample_agree(name):
    from guided_diffusion.script_util import create_gaussian_diffusion

    theirs = create_gaussian_diffusion(steps=1000, noise_schedule=name)
    schedule = NoiseSchedule.from_name(name)
    x_0, eps, t = recipe_input(1, 4, 3, 8, 8), recipe_input(2, 4, 3, 8, 8), torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(q_sample(x_0, t, eps, schedule), theirs.q_sample(x_0, t, eps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(schedule.posterior_variance, torch.from_numpy(theirs.posterior_variance))


# MODEL_FLAGS of OpenAI's README (openai/guided-diffusion); those for every model are in `build_published`.
_256 = {"image_size": 256, "num_channels": 256, "num_head_channels": 64, "num_res_blocks": 2}
PUBLISHED_FLAGS: dict[str, dict[str, Any]] = {
    "adm64_cond": {
        "image_size": 64, "class_cond": True, "dropout": 0.1, "noise_schedule": "cosine", "num_channels": 192,
        "num_head_channels": 64, "num_res_blocks": 3, "use_new_attention_order": True,
    },
    "adm128_cond": {"image_size": 128, "class_cond": True, "num_channels": 256, "num_heads": 4, "num_res_blocks": 2},
    "adm256_cond": {**_256, "class_cond": True},
    "adm256_uncond": {**_256},
    "adm512_cond": {**_256, "image_size": 512, "class_cond": True},
    "lsun_bedroom": {**_256, "dropout": 0.1},
    "lsun_cat": {**_256, "dropout": 0.1},
    "lsun_horse": {**_256, "dropout": 0.1},
    "lsun_horse_nodropout": {**_256},
}  # fmt: skip


def build_published(flags):
    """The network and schedule that OpenAI's own scripts build from flags; without allocating it."""
    from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults

    common = {
        "attention_resolutions": "32,16,8", "diffusion_steps": 1000, "learn_sigma": True, "noise_schedule": "linear",
        "resblock_updown": True, "use_scale_shift_norm": True,
    }  # fmt: skip
    with torch.device("meta"):
        return create_model_and_diffusion(**(model_and_diffusion_defaults() | common | flags))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_openais_scripts_build_from_their_flags(name):
    theirs, diffusion = build_published(PUBLISHED_FLAGS[name])
    state, config = read_live(theirs)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == PRESETS[name].expected_keys
    assert config == PRESETS[name].config
    torch.testing.assert_close(PRESETS[name].schedule.betas, torch.from_numpy(diffusion.betas))
