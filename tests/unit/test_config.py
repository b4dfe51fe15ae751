import json
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
import torch
from support import ADM256, small_config

from difformer import UNetConfig
from difformer.config import from_mapping


def test_round_trip_through_a_mapping():
    assert from_mapping(UNetConfig, {**asdict(ADM256), "channel_mult": [1, 1, 2, 2, 4, 4]}) == ADM256


def test_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown key 'num_head_chanels'.*'num_head_channels'"):
        from_mapping(UNetConfig, {**asdict(ADM256), "num_head_chanels": 64})


def test_missing_key_is_named():
    with pytest.raises(ValueError, match="model_channels"):
        from_mapping(UNetConfig, {"image_size": 64})


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        ADM256.image_size = 128  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 48}, "multiple of 32"),
        ({"channel_mult": ()}, "at least one level"),
        ({"channel_mult": (1, -1)}, "positive numbers"),
        ({"channel_mult": "1,2"}, "sequence of numbers"),
        ({"image_size": 30}, "multiple of 4"),
        ({"image_size": 0}, "positive integer"),
        ({"image_size": 32.0}, "positive integer"),
        ({"attention_resolutions": (12,)}, r"sides \[32, 16, 8\]"),
        ({"num_head_channels": 24}, "must divide the width 32"),
        ({"num_head_channels": None, "num_heads": 3}, "num_heads 3 must divide"),
        ({"num_head_channels": -1}, "positive integer"),
        ({"resblock_updown": "False"}, "true or false"),
        ({"num_classes": 0}, "positive integer"),
        ({"dropout": 1.0}, "below 1"),
        ({"dropout": float("nan")}, "below 1"),
        ({"dropout": "0.1"}, "must be a number"),
        ({"dropout": True}, "must be a number"),
        ({"image_size": "32"}, "positive integer"),
        ({"image_size": np.bool_(True)}, "positive integer"),
        ({"num_classes": torch.tensor(True)}, "positive integer"),
        ({"attention_resolutions": 8}, "sequence of numbers"),
        ({"attention_resolutions": (8.0,)}, "positive integer"),
        ({"channel_mult": (1, float("inf"))}, "positive numbers"),
        ({"channel_mult": (1, True)}, "positive numbers"),
        ({"channel_mult": (1, "2")}, "positive numbers"),
    ],
)
def test_bad_values_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_resolutions_below_the_coarsest_level_have_no_effect():
    assert small_config(attention_resolutions=(16, 8, 4)).attends(2)
    assert not small_config(attention_resolutions=(4,)).attends(2)


def test_numpy_numbers_are_kept_as_plain_ones():
    config = small_config(
        image_size=np.int64(32),
        channel_mult=np.array([1, 1, 2]),
        attention_resolutions=np.array([16, 8], dtype=np.int32),
        num_classes=torch.tensor(4),
        dropout=np.float32(0.5),
    )
    assert config == small_config(num_classes=4, dropout=0.5)
    assert json.loads(json.dumps(asdict(config))) == json.loads(
        json.dumps(asdict(small_config(num_classes=4, dropout=0.5)))
    )


def test_equal_networks_have_equal_configurations():
    assert small_config(attention_resolutions=(8, 16, 8)) == small_config(attention_resolutions=(16, 8))
    assert small_config(num_heads=4, num_head_channels=16) == small_config(num_head_channels=16)
    assert small_config(num_heads=4, num_head_channels=None) != small_config(num_heads=2, num_head_channels=None)
    assert small_config(attention_resolutions=(16, 8, 4)).attention_levels == (1, 2)


@pytest.mark.parametrize("values", [5, "name", None, ["image_size"], [("image_size", 32)]])
def test_what_is_no_mapping_is_refused(values):
    with pytest.raises(ValueError, match="UNetConfig must be given as keys and values, got"):
        from_mapping(UNetConfig, values)


@pytest.mark.parametrize("name", ["image_size", "model_channels", "num_classes", "num_heads", "in_channels"])
@pytest.mark.parametrize("value", [2**64, 10**5000], ids=["64 bits", "5000 digits"])
def test_numbers_beyond_any_network_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at most 1000000"):
        small_config(**{name: value, "num_head_channels": None})


def test_a_number_beyond_any_network_is_named():
    with pytest.raises(ValueError, match="must be at most 1000000, got 2000000"):
        small_config(model_channels=2_000_000)
    with pytest.raises(ValueError, match="got a number of 16610 bits"):
        small_config(model_channels=10**5000)
