import numpy as np
import pytest
import torch

from difformer import FeatureKey, mirror
from difformer.taps import resolve_tap, resolve_taps, tap_names

NAMES = tap_names(18)


def test_names_follow_the_network():
    assert NAMES[:2] == ("in00", "in01")
    assert NAMES[17:20] == ("in17", "mid", "out00")
    assert len(NAMES) == 37


def test_keys_hold_plain_numbers():
    key = FeatureKey("mid", np.int64(90), round=torch.tensor(1))
    assert key == FeatureKey("mid", 90, 1)
    assert (type(key.t), type(key.round)) == (int, int)
    with pytest.raises(ValueError, match=r"t must be an integer, got 0\.5"):
        FeatureKey("mid", 0.5)


@pytest.mark.parametrize(
    ("tap", "name"),
    [
        (1, "in00"),
        (19, "mid"),
        (24, "out04"),
        ("24", "out04"),
        (np.int64(37), "out17"),
        (torch.tensor(24), "out04"),
        ("mid", "mid"),
    ],
)
def test_block_numbers_and_names_mean_the_same(tap, name):
    assert resolve_tap(tap, NAMES) == name


@pytest.mark.parametrize(
    "tap",
    [
        "out18",
        "out4",
        "",
        "-1",
        0,
        38,
        -1,
        2.5,
        None,
        True,
        "²",
        "9" * 5000,
        np.bool_(True),
        torch.tensor(True),
        torch.tensor(1.0),
    ],
)
def test_unknown_tap_raises_and_lists_the_valid_ones(tap):
    with pytest.raises(ValueError, match=r"in00.*mid.*out17.*1 to 37"):
        resolve_tap(tap, NAMES)


def test_unknown_tap_suggests_a_near_one():
    with pytest.raises(ValueError, match="Did you mean 'mid'"):
        resolve_tap("middle", NAMES)


def test_request_keeps_its_order():
    assert resolve_taps([30, "mid", "24"], NAMES) == ("out10", "mid", "out04")


@pytest.mark.parametrize("request_", [[24, "out04"], ["mid", 19, 1]])
def test_repeated_tap_raises(request_):
    with pytest.raises(ValueError, match="more than once"):
        resolve_taps(request_, NAMES)


@pytest.mark.parametrize(("request_", "message"), [([], "no tap"), ("out04", "sequence"), (24, "sequence")])
def test_request_must_be_a_non_empty_sequence(request_, message):
    with pytest.raises(ValueError, match=message):
        resolve_taps(request_, NAMES)


@pytest.mark.parametrize(("tap", "other"), [("out01", "in16"), (24, "in13"), ("in00", "out17"), ("mid", "mid")])
def test_mirror(tap, other):
    assert mirror(tap, NAMES) == other
    assert mirror(other, NAMES) == resolve_tap(tap, NAMES)


def test_mirror_of_adm256_is_38_minus_the_block():
    for block in range(1, 38):
        assert mirror(block, NAMES) == NAMES[38 - block - 1]


def test_feature_keys_are_values():
    assert {FeatureKey("mid", 150): 1}[FeatureKey("mid", 150, round=0)] == 1
    assert FeatureKey("mid", 150) != FeatureKey("mid", 150, round=1)


def test_mirror_alone_means_the_network_the_literature_numbers():
    assert mirror("out01") == mirror(21) == "in16"
    with pytest.raises(ValueError, match="1 to 37"):
        mirror("out18")
