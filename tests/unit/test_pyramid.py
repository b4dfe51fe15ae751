"""Levels of a pyramid, and what is computed on them."""

import pytest
import torch
import torch.nn.functional as F
from example_dense_heads import AGAIN, COARSE, FINE, LATER, MIDDLE, ONE, PYRAMID, SIZE
from support import recipe_input
from torch import nn

from difformer import FeatureKey
from difformer.heads import Pyramid
from difformer.heads.pyramid import ConvNorm, linear_of_pixels, pixels_at, top_down
from difformer.taps import TapSpec


def maps_of(specs, batch=2):
    return {
        key: recipe_input(i, batch, spec.channels, spec.height, spec.width)
        for i, (key, spec) in enumerate(specs.items())
    }


def test_levels_are_ordered_and_features_of_one_size_stand_in_the_order_of_the_specs():
    pyramid, maps = Pyramid(PYRAMID), maps_of(PYRAMID)
    assert pyramid.keys == ((FINE,), (MIDDLE, LATER, AGAIN), (COARSE,))
    assert (pyramid.channels, len(pyramid)) == ((8, 48, 24), 3)
    with pytest.raises(ValueError, match="a stride counts pixels of the image: give image_size"):
        _ = pyramid.strides
    fine, middle, coarse = pyramid(maps)
    assert torch.equal(fine, maps[FINE])
    assert torch.equal(middle, torch.cat([maps[MIDDLE], maps[LATER], maps[AGAIN]], dim=1))
    assert torch.equal(coarse, maps[COARSE])
    swapped = Pyramid(dict(reversed(PYRAMID.items())))
    assert swapped.keys == ((FINE,), (AGAIN, LATER, MIDDLE), (COARSE,))


def test_finer_maps_are_averaged_to_the_finest_stride():
    maps = maps_of(PYRAMID)
    pyramid = Pyramid(PYRAMID, image_size=SIZE, finest_stride=4)
    assert (pyramid.channels, pyramid.strides) == ((56, 24), (4, 8))
    assert pyramid.arguments == {"image_size": [64, 96], "finest_stride": 4}
    fine, coarse = pyramid(maps)
    assert torch.equal(fine[:, :8], F.avg_pool2d(maps[FINE], 2))
    assert torch.equal(coarse, maps[COARSE])
    assert Pyramid(PYRAMID, image_size=SIZE, finest_stride=2).strides == (2, 4, 8)
    assert Pyramid(PYRAMID, image_size=SIZE, finest_stride=16).strides == (16,)
    # Where all are coarser, nothing is averaged.
    assert Pyramid(ONE, image_size=SIZE, finest_stride=1).strides == (4,)


def test_cells_at_the_border_are_averages_of_what_is_there():
    specs = {FeatureKey("out05", 0): TapSpec("out05", 1, 1, (3, 5), 0)}
    pyramid = Pyramid(specs, image_size=(6, 10), finest_stride=4)
    (level,) = pyramid({FeatureKey("out05", 0): torch.arange(15.0).view(1, 1, 3, 5)})
    assert level.tolist() == [[[[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]]]


@pytest.mark.parametrize(
    ("specs", "options", "message"),
    [
        ({}, {}, "at least one feature"),
        (PYRAMID, {"finest_stride": 4}, "finest_stride 4 counts pixels of the image: give image_size"),
        (
            PYRAMID,
            {"finest_stride": 3, "image_size": SIZE},
            r"a multiple of the stride of FeatureKey.*out08.*, 2, got 3",
        ),
        (PYRAMID, {"finest_stride": 0, "image_size": SIZE}, "finest_stride must be a positive integer, got 0"),
        (PYRAMID, {"image_size": (96, 64)}, r"the map of .*mid.*, 8×12, does not divide images of 96×64 evenly"),
        (PYRAMID, {"image_size": 0}, "image_size must be an integer of at least 1"),
        (
            {FeatureKey("a", 0): TapSpec("a", 1, 1, (8, 4), 0), FeatureKey("b", 0): TapSpec("b", 2, 1, (4, 8), 0)},
            {},
            "maps of 8×4, 4×8 are no pyramid",
        ),
    ],
)
def test_what_is_no_pyramid_is_refused(specs, options, message):
    with pytest.raises(ValueError, match=message):
        Pyramid(specs, **options)


def test_maps_of_one_level_must_have_one_size():
    maps = maps_of(PYRAMID)
    with pytest.raises(ValueError, match=r"features of one level must have maps of one size, got .*16×24.*15×24"):
        Pyramid(PYRAMID)(maps | {LATER: maps[LATER][:, :, :-1]})


def test_a_linear_layer_of_pixels_is_that_of_their_resized_features():
    levels = Pyramid(PYRAMID)(maps_of(PYRAMID))
    layer = nn.Linear(80, 7)
    pixels = torch.cat([F.interpolate(x, size=(64, 96), mode="bilinear") for x in levels], dim=1)
    expected = layer(pixels.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(linear_of_pixels(levels, layer, (64, 96)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (13, 7)])
def test_single_pixels_are_those_of_resized_maps(size):
    levels = [level.requires_grad_() for level in Pyramid(PYRAMID)(maps_of(PYRAMID))]
    whole = torch.cat([F.interpolate(x, size=size, mode="bilinear") for x in levels], dim=1)
    places = torch.cartesian_prod(*(torch.arange(length) for length in (2, *size)))
    found = pixels_at(levels, size, places)
    torch.testing.assert_close(found, whole.movedim(1, -1).flatten(0, 2), rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    assert all(level.grad.abs().amax(dim=1).gt(0).all() for level in levels) or size == (13, 7)
    assert pixels_at(levels, size, places[:0]).shape == (0, 80)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (torch.tensor([[0, 0]]), r"places must be \(P, 3\) int64, image, row and column, got \(1, 2\)"),
        (torch.tensor([[0.0, 0, 0]]), "int64"),
        (torch.tensor([[2, 0, 0]]), "within 2 images of 8×12 pixels"),
        (torch.tensor([[0, 8, 0]]), "within"),
        (torch.tensor([[0, 0, -1]]), "within"),
    ],
)
def test_pixels_that_are_not_there_are_refused(places, message):
    with pytest.raises(ValueError, match=message):
        pixels_at([torch.zeros(2, 1, 4, 6)], (8, 12), places)


def test_coarser_levels_are_added_to_finer_ones():
    fine, middle, coarse = torch.zeros(1, 1, 8, 12), torch.ones(1, 1, 4, 6), torch.full((1, 1, 2, 3), 2.0)
    levels = top_down([fine, middle, coarse])
    assert [level.unique().tolist() for level in levels] == [[3.0], [3.0], [2.0]]
    assert fine.eq(0).all()


def test_norms_are_checked():
    with pytest.raises(ValueError, match="norm must be one of batch, group, got 'layer'"):
        ConvNorm(4, 64, 1, "layer")
    with pytest.raises(ValueError, match="norm='group' needs a width that is a multiple of 64, got 32"):
        ConvNorm(4, 32, 1, "group")
    assert list(ConvNorm(4, 64, 3, "group").state_dict()) == ["conv.weight", "gn.weight", "gn.bias"]
