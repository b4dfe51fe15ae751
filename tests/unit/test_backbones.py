"""Backbones from live networks, and what opening one settles."""

import warnings

import pytest
import torch
from support import UNSEEN, recipe_input, small_config, small_unet

from difformer import (
    AttentionUnavailable,
    Backbone,
    NoiseSchedule,
    Schedule,
    UNet,
    create_backbone,
    q_sample,
)


def test_a_live_network_is_shared_and_frozen():
    unet = small_unet()
    backbone = create_backbone(unet, schedule="linear", dtype=torch.float32)
    assert isinstance(backbone, Backbone)
    weight = unet.input_blocks[0][0].weight
    assert backbone.unet.input_blocks[0][0].weight.data_ptr() == weight.data_ptr()
    assert weight.requires_grad
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())
    x = recipe_input(0, 1, 3, 32, 32)
    assert torch.equal(backbone.encode(x), x)
    assert torch.equal(backbone(x, 10), unet(x, 10))
    assert torch.equal(backbone.forward_taps(x, 10, [10])["mid"], unet.forward_taps(x, 10, [10])["mid"])


def test_live_networks_need_a_schedule_and_must_be_unets():
    with pytest.raises(ValueError, match="give schedule="):
        create_backbone(small_unet())
    with pytest.raises(ValueError, match="leave out config"):
        create_backbone(small_unet(), config=small_config(), schedule="linear")
    with pytest.raises(ValueError, match=r"got torch.nn.modules.linear.Linear"):
        create_backbone(torch.nn.Linear(1, 1), schedule="linear")


def test_gradients_reach_injections_and_no_frozen_weight():
    backbone = create_backbone(small_unet(), schedule="linear")
    value = recipe_input(0, 1, 32, 32, 32).requires_grad_()
    backbone.forward_taps(recipe_input(1, 1, 3, 32, 32), 10, ["mid"], inject={"in00": value})["mid"].sum().backward()
    assert value.grad is not None
    assert value.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_dtype_is_that_asked_for_and_not_that_of_the_file(anywhere, stored):
    torch.save({name: tensor.to(stored) for name, tensor in small_unet().state_dict().items()}, "own.pt")
    for dtype in (None, torch.bfloat16):
        backbone = create_backbone("own.pt", config=UNSEEN, schedule=NoiseSchedule.linear(), dtype=dtype)
        assert backbone.dtype == (dtype or torch.float32)
        assert backbone.unet.middle_block[0].in_layers[0].weight.dtype == torch.float32


def test_a_live_networks_digest_is_that_of_its_weights_now():
    unet = small_unet()
    backbone = create_backbone(unet, schedule="linear")
    before = backbone.digest
    with torch.no_grad():
        unet.out[2].bias += 1
    assert backbone.digest != before
    assert backbone.digest == create_backbone(unet, schedule="linear").digest
    assert create_backbone(unet, schedule="linear", dtype=torch.bfloat16).digest == backbone.digest


def test_a_live_network_stays_where_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr(UNet, "to", lambda self, device: asked.append(torch.device(device)) or self)
    monkeypatch.setattr("difformer.backbones.adm.load_strictly", lambda unet, state, source: None)
    with torch.device("meta"):  # the one other device there is everywhere
        unet = UNet(small_config())
    create_backbone(unet, schedule="linear")
    create_backbone(small_unet(), schedule="linear", device="meta")
    assert asked == [torch.device("meta")] * 2


def test_other_networks_of_the_same_name_are_told_what_they_lack():
    class UNetModel(torch.nn.Linear):
        pass

    network = UNetModel(1, 1)
    with pytest.raises(ValueError, match=r"UNetModel: it has no image_size, num_heads, .*middle_block"):
        create_backbone(network, schedule="linear")
    for name in ("image_size", "num_heads", "num_heads_upsample", "num_head_channels", "dropout"):
        setattr(network, name, 1)
    network.middle_block = torch.nn.Sequential()
    with pytest.raises(ValueError, match=r"it has no middle_block\[1\]\.attention"):
        create_backbone(network, schedule="linear")


def test_attention_that_cannot_run_is_refused_on_opening():
    with pytest.raises(AttentionUnavailable, match="no attention for cpu"):
        create_backbone(small_unet(), schedule="linear", attention="xformers")


def test_any_schedule_that_gives_coefficients_makes_a_backbone():
    class Flow:
        num_timesteps = 10

        def coefficients(self, t):
            s_t = torch.as_tensor(t) / 10
            return 1 - s_t, s_t

    assert isinstance(Flow(), Schedule)
    assert isinstance(NoiseSchedule.linear(), Schedule)
    x_0, eps = recipe_input(0, 2, 3, 4, 4), recipe_input(1, 2, 3, 4, 4)
    torch.testing.assert_close(q_sample(x_0, 5, eps, Flow()), 0.5 * x_0 + 0.5 * eps)


@pytest.mark.parametrize("schedule", [5, {"name": "linear"}, "sigmoid"])
def test_schedules_are_schedules_or_names(anywhere, schedule):
    torch.save(small_unet().state_dict(), "own.pt")
    for source in (small_unet(), "own.pt"):
        config = UNSEEN if source == "own.pt" else None
        with pytest.raises(ValueError, match="schedule"):
            create_backbone(source, config=config, schedule=schedule)


def test_rescaled_timesteps_reach_the_network():
    unet, x = small_unet(), recipe_input(0, 2, 3, 32, 32)
    backbone = create_backbone(unet, schedule=NoiseSchedule.linear(4000, rescale_timesteps=True))
    t, told = torch.tensor([4, 3000]), torch.tensor([1.0, 750.0])
    assert torch.equal(backbone(x, t), unet(x, told))
    assert torch.equal(backbone(x, 3000), unet(x, 750))
    expected = unet.forward_taps(x, told, ["mid"])["mid"]
    assert torch.equal(backbone.forward_taps(x, t, ["mid"])["mid"], expected)
    assert torch.equal(backbone.forward_from(backbone.forward_prefix(x, t, "in02"), ["mid"])["mid"], expected)
    plain = create_backbone(unet, schedule=NoiseSchedule.linear(4000))
    assert torch.equal(plain(x, t), unet(x, t))


@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_without_bfloat16_is_warned_of(monkeypatch, supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for dtype in (torch.bfloat16, None):
            create_backbone(small_unet(), schedule="linear", dtype=dtype)
    slow = [str(one.message) for one in warned if "80 times" in str(one.message)]
    assert len(slow) == (not supported)
    assert all("no instructions for bfloat16" in text and "backbone.dtype: float32" in text for text in slow)
