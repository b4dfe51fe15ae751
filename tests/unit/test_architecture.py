"""What weights show of their architecture, and what is asked for."""

import json
import time

import pytest
import torch
from support import UNSEEN, small_config, small_unet

from difformer import PRESETS, CheckpointError, NoiseSchedule, UNet, create_backbone
from difformer.checkpoints.architecture import see_architecture
from difformer.checkpoints.presets import weight_shapes

# Every kind of network OpenAI's code can build.
ARCHITECTURES = [
    {},
    {"channel_mult": (1,), "attention_resolutions": (32,)},
    {"channel_mult": (2, 1), "num_res_blocks": 1, "attention_resolutions": ()},
    {"resblock_updown": False, "attention_resolutions": (8,)},
    {"resblock_updown": False, "conv_resample": False, "num_res_blocks": 3},
    {"use_scale_shift_norm": False, "num_classes": 7},
    {"model_channels": 64, "channel_mult": (0.5, 1, 1.5), "in_channels": 6, "out_channels": 3},
    {"num_heads": 4, "num_head_channels": None, "use_new_attention_order": True},
]


@pytest.mark.parametrize("changes", ARCHITECTURES)
def test_everything_the_weights_show_is_inferred(changes):
    config = small_config(**changes)
    heads = {"num_heads": config.num_heads} if config.num_head_channels is None else {"num_head_channels": 16}
    seen = see_architecture(UNet(config).state_dict(), "some.pt")
    given = {"image_size": 32, "use_new_attention_order": config.use_new_attention_order, **heads}
    assert seen.complete(given) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised_by_their_weights(name):
    config = PRESETS[name].config
    with torch.device("meta"):
        state = UNet(config).state_dict()
    seen = see_architecture(state, "some.pt")
    assert name in [preset.name for preset in seen.matching_presets()]
    arguments = {"image_size": config.image_size, "use_new_attention_order": config.use_new_attention_order}
    arguments |= {"num_heads": config.num_heads, "num_head_channels": config.num_head_channels}
    assert seen.complete(arguments | {"dropout": config.dropout}) == config


def test_the_question_lists_what_is_missing_with_candidates(anywhere):
    torch.save(small_unet().state_dict(), "own.pt")
    with pytest.raises(CheckpointError) as caught:
        create_backbone("own.pt")
    message = str(caught.value)
    for text in (
        "own.pt",
        "still to be given: image_size, use_new_attention_order, num_heads or num_head_channels",
        "channel_mult=(1, 1, 2)",
        "[32, 64, 128, 256, 512]",
        "num_head_channels=64",
        "num_heads=4",
    ):
        assert text in message
    with pytest.raises(CheckpointError, match=r"the noise schedule and its number of steps; still to be given"):
        create_backbone("own.pt", config=UNSEEN)
    backbone = create_backbone("own.pt", config=UNSEEN, schedule=NoiseSchedule.cosine(1000))
    assert backbone.config == small_config()
    assert backbone.schedule.name == "cosine"


def test_the_question_names_presets_of_the_same_shape():
    with torch.device("meta"):
        state = UNet(PRESETS["lsun_cat"].config).state_dict()
    with pytest.raises(CheckpointError, match="exactly this shape: adm256_uncond, lsun_bedroom"):
        see_architecture(state, "some.pt").complete({})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_head_chanels": 16}, "unknown key 'num_head_chanels'.*'num_head_channels'"),
        ({"model_channels": 64}, "the weights show model_channels 32, not 64"),
        ({"attention_resolutions": [8]}, "the weights show attention_resolutions"),
        ({"image_size": 30}, "multiple of 4"),
        ({"num_head_channels": 24}, "must divide"),
    ],
)
def test_contradictions_raise(given, message):
    with pytest.raises(ValueError, match=message):
        see_architecture(small_unet().state_dict(), "some.pt").complete(UNSEEN | given)


def test_given_values_that_agree_are_accepted():
    given = UNSEEN | {"channel_mult": [1, 1, 2], "attention_resolutions": [8, 16], "dropout": 0.2}
    assert see_architecture(small_unet().state_dict(), "some.pt").complete(given) == small_config(dropout=0.2)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"conv.weight": torch.zeros(3)},
        {name: tensor for name, tensor in small_unet().state_dict().items() if "output_blocks" not in name},
        {name: tensor for name, tensor in small_unet().state_dict().items() if "input_blocks.2" not in name},
        small_unet().state_dict() | {"fc.weight": torch.zeros(1)},
    ],
    ids=["empty", "another network", "no decoder", "a block missing", "something more"],
)
def test_other_networks_are_told_apart(state):
    with pytest.raises(CheckpointError, match=r"some\.pt does not hold a guided-diffusion U-Net"):
        see_architecture(state, "some.pt")


def test_weight_shapes_allocate_nothing():
    assert weight_shapes(small_config()) == {n: tuple(p.shape) for n, p in small_unet().state_dict().items()}
    assert json.dumps(weight_shapes(PRESETS["adm512_cond"].config))


def test_made_up_block_numbers_are_refused_at_once():
    state = dict(small_unet().state_dict())
    for name in ("output_blocks.20000000.0.x", "output_blocks.20000000", f"output_blocks.{'9' * 5000}.0.x"):
        start = time.monotonic()
        with pytest.raises(CheckpointError, match="does not hold a guided-diffusion U-Net"):
            see_architecture(state | {name: torch.zeros(1)}, "some.pt")
        assert time.monotonic() - start < 1


def test_shapes_beyond_any_memory_are_refused():
    """One number can stand for a tensor of any shape."""
    state = small_unet().state_dict() | {"time_embed.0.weight": torch.zeros(1).expand(2**30, 2**30)}
    with pytest.raises(CheckpointError, match="does not hold a guided-diffusion U-Net"):
        see_architecture(state, "some.pt")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": "32"}, "image_size must be an integer, got '32'"),
        ({"image_size": 32.0}, r"image_size must be an integer, got 32\.0"),
        ({"image_size": 1}, "multiple of 4"),
        ({"attention_resolutions": 8}, "attention_resolutions must be a sequence"),
        ({"channel_mult": (1, float("inf"), 2)}, "channel_mult must hold positive numbers"),
        ({"dropout": "0.1"}, "dropout must be a number"),
    ],
)
def test_odd_types_are_told_clearly(given, message):
    with pytest.raises(ValueError, match=message):
        see_architecture(small_unet().state_dict(), "some.pt").complete(UNSEEN | given)


def test_attention_at_sizes_that_do_not_occur_contradicts_nothing():
    given = UNSEEN | {"attention_resolutions": [16, 8, 4]}
    assert see_architecture(small_unet().state_dict(), "some.pt").complete(given) == small_config()


def test_the_question_says_how_to_answer():
    with torch.device("meta"):
        state = UNet(PRESETS["lsun_cat"].config).state_dict()
    with pytest.raises(CheckpointError) as caught:
        see_architecture(state, "some.pt").complete({})
    for text in ("config={'image_size'", "--arch.image_size", "config='adm256_uncond'", "--preset adm256_uncond"):
        assert text in str(caught.value)
