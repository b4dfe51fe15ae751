"""The tap table against the published one, against a forward pass, and against torch's own FLOP counter."""

import pytest
import torch
from support import ADM256, small_config, small_unet

from difformer import PRESETS, UNet
from difformer.checkpoints.presets import weight_shapes
from difformer.models.memory import flop_counter
from difformer.models.plan import tap_specs

# facts of ADM-256 as the literature gives them: first block, last block, value
CHANNELS = [(1, 7, 256), (8, 13, 512), (14, 25, 1024), (26, 31, 512), (32, 37, 256)]
SIZES = [(1, 3, 256), (4, 6, 128), (7, 9, 64), (10, 12, 32), (13, 15, 16), (16, 21, 8), (22, 24, 16), (25, 27, 32)]
SIZES += [(28, 30, 64), (31, 33, 128), (34, 37, 256)]
GFLOP = {3: 310, 9: 505, 15: 567, 19: 580, 24: 639, 27: 738, 30: 921, 33: 1274, 36: 1989, 37: 2238}

VARIANTS = [
    {},
    {"resblock_updown": False},
    {"resblock_updown": False, "conv_resample": False},
    {"use_scale_shift_norm": False, "attention_resolutions": ()},
    {"channel_mult": (1,), "attention_resolutions": (32,)},
    {"model_channels": 64, "channel_mult": (0.5, 1, 1.5), "num_res_blocks": 1, "num_head_channels": 32},
]


def flops_of(unet, taps, size=(32, 32)):
    x = torch.zeros(1, unet.config.in_channels, *size, device=next(unet.parameters()).device)
    with flop_counter() as counter, torch.no_grad():
        unet.forward_taps(x, torch.zeros(1, dtype=torch.long, device=x.device), taps)
    return counter.get_total_flops()


def test_adm256_has_the_published_table():
    specs = list(tap_specs(ADM256).values())
    assert [spec.block for spec in specs] == list(range(1, 38))
    for first, last, channels in CHANNELS:
        assert {spec.channels for spec in specs[first - 1 : last]} == {channels}
    for first, last, size in SIZES:
        assert {spec.size for spec in specs[first - 1 : last]} == {size}
    for block, gflop in GFLOP.items():
        assert specs[block - 1].flops / 1e9 == pytest.approx(gflop, abs=0.6)


@pytest.mark.parametrize("changes", VARIANTS)
def test_table_agrees_with_a_forward_pass_and_the_flop_counter(changes):
    unet = small_unet(**changes)
    features = unet.forward_taps(torch.zeros(1, 3, 32, 32), 0, list(unet.taps))
    assert list(features) == list(unet.taps)
    for name, spec in unet.taps.items():
        assert features[name].shape == (1, spec.channels, spec.size, spec.size)
        assert flops_of(unet, [name]) == spec.flops


def test_early_stop_on_adm256_runs_nothing_after_the_deepest_tap():
    with torch.device("meta"):
        unet = UNet(ADM256)
        x, t = torch.zeros(1, 3, 256, 256), torch.zeros(1)
        with flop_counter() as whole, torch.no_grad():
            unet(x, t)
    share = flops_of(unet, ["mid", 24], (256, 256)) / whole.get_total_flops()
    assert flops_of(unet, ["mid", 24], (256, 256)) == unet.taps["out04"].flops
    assert share == pytest.approx(0.285, abs=0.0005)


def test_parameter_count_of_adm256():
    assert sum(torch.Size(shape).numel() for shape in weight_shapes(ADM256).values()) == 552_814_086


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_have_consistent_plans(preset):
    assert len(tap_specs(preset.config)) == len(preset.config.channel_mult) * 2 * (preset.config.num_res_blocks + 1) + 1
    assert any(name.startswith("label_emb") for name in preset.expected_keys) == preset.name.endswith("_cond")


def test_small_config_has_nineteen_blocks():
    assert len(tap_specs(small_config())) == 19
