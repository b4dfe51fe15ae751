"""Images that are not square: how sizes are written, what becomes of pictures, maps and costs, and what heads do."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from data_sets import make_folder, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image
from support import small_config, small_unet

from difformer import (
    AttentionHead,
    CNNHead,
    DifFormerHead,
    DiffusionClassifier,
    FeatureExtractor,
    FeedbackExtractor,
    LinearHead,
    create_backbone,
    load_classifier,
    save_classifier,
)
from difformer.classifier import read_description
from difformer.config import as_json_size, as_size, sides
from difformer.data import (
    DataConfig,
    Preprocessing,
    PublishedTransform,
    create_dataset,
    create_transform,
    sample_generator,
    transform_description,
)
from difformer.data.images import enlarged, resize_to_cover
from difformer.engine.cost.costs import cache_bytes, flops_per_image
from difformer.features.sizes import taps_at
from difformer.models.memory import flop_counter
from difformer.models.plan import tap_specs
from difformer.taps import FeatureKey, TapSpec
from difformer.verbs.pretrain.recipe import PretrainRecipe

TRANSFORMS = ["none", "published", "flip", "flips", "shift", "crop", "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "3a"]
BAD = [[64], [0, 5], "64x96", [64, 96, 3], [64, 9.5], [True, 4], -1, None, {"h": 4}]
# Of small_unet, which halves its maps twice.
SIDES = st.integers(1, 5).map(lambda n: 4 * n)


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear", attention="math")


def extractor_of(backbone, size=(24, 40)):
    return FeatureExtractor(backbone, taps=["out05", "mid"], timesteps=[90], image_size=size)


# --- how they are written


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_sizes_that_are_none_are_refused(bad):
    with pytest.raises(
        ValueError, match=r"size must be an integer of at least 1, or \[h, w\], .*height before width; got"
    ):
        as_size("size", bad)
    for build in (lambda: DataConfig(name="folder", size=bad), lambda: Preprocessing(bad)):
        with pytest.raises(ValueError, match="size must be an integer of at least 1, or"):
            build()


def test_a_square_is_one_number_however_it_is_written():
    for square in (64, [64, 64], (64, 64), np.int64(64), [np.int64(64), 64]):
        assert as_size("size", square) == 64
        assert type(DataConfig(name="folder", size=square).size) is int
        assert json.dumps(asdict(Preprocessing(square))) == '{"size": 64, "resize": null}'
    assert as_size("size", [64, 96]) == (64, 96)
    assert (as_json_size(64), as_json_size((64, 96))) == (64, [64, 96])


def test_what_is_said_of_squares_is_as_it_was():
    config = DataConfig(name="folder", size=64, augmentation="none")
    expected = {"name": "none", "size": 64, "resize": 64, "random_erasing": 0.0, "seed": None}
    assert json.dumps(transform_description(config, augment=False)) == json.dumps(expected)
    wide = DataConfig(name="folder", size=[64, 96], augmentation="none")
    described = transform_description(wide, augment=False)
    assert described == expected | {"size": [64, 96]} == json.loads(json.dumps(described))


def test_a_tap_has_height_and_width():
    square, wide = TapSpec("mid", 1, 8, 4, 0), TapSpec("mid", 1, 8, [4, 6], 0)
    assert (square.size, square.height, square.width) == (4, 4, 4)
    assert (wide.size, wide.height, wide.width) == ((4, 6), 4, 6)
    assert TapSpec("mid", 1, 8, (4, 4), 0) == square
    with pytest.raises(ValueError, match="size must be an integer of at least 1, or"):
        TapSpec("mid", 1, 8, (4,), 0)


# --- pictures


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (30, 30), (7, 90), (200, 3)])
@pytest.mark.parametrize("size", [(16, 24), (24, 16), (8, 40)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_gives_the_size(name, size, shape):
    if name.startswith("augmix") and Version(timm.__version__) < Version("1.0.30"):
        with pytest.raises(ValueError, match=r"augmix of images that are not square needs timm 1\.0\.30 or later"):
            create_transform(name, size)
        return
    transform = create_transform(name, size)
    picture = Image.fromarray(pixels(0, *shape))
    for number in range(3):
        found = transform(picture, sample_generator(0, 0, number))
        assert found.shape == (3, *size)
        assert found.dtype == torch.float32
        assert -1 <= found.min() <= found.max() <= 1
    assert torch.equal(found, transform(picture, sample_generator(0, 0, 2)))


def test_quarter_turns_are_for_squares():
    with pytest.raises(ValueError, match=r"symmetries turns images by quarters, which \[16, 24\] .* give flips"):
        create_transform("symmetries", (16, 24))
    with pytest.raises(ValueError, match="symmetries turns images by quarters"):
        DataConfig(name="folder", size=(16, 24), augmentation="symmetries")
    assert create_transform("symmetries", (16, 16))(Image.new("RGB", (30, 20)), sample_generator(0, 0, 0)).ndim == 3


def test_flips_are_the_symmetries_of_a_rectangle():
    picture = Image.fromarray(pixels(0, 16, 24))
    plain = Preprocessing((16, 24))(picture)
    expected = {plain.flip(axes).numpy().tobytes() for axes in ((), (1,), (2,), (1, 2))}
    flips = create_transform("flips", (16, 24))
    assert {flips(picture, sample_generator(0, 0, n)).numpy().tobytes() for n in range(40)} == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64), st.integers(0, 20))
def test_an_image_covers_the_window_and_no_more_than_it_must(height, width, rows, columns, margin):
    window = as_size("size", (rows, columns))
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    covering = resize_to_cover(picture, window)
    assert covering.height >= rows
    assert covering.width >= columns
    assert covering.height == rows or covering.width == columns
    # Nothing is padded: all of what is cropped is white.
    assert Preprocessing(window, min(rows, columns) + margin)(picture).min() == 1


def test_resize_is_the_short_side_of_what_is_covered():
    assert enlarged((64, 96), None) == (64, 96)
    assert enlarged((64, 96), 80) == (80, 120)
    assert enlarged(64, 80) == 80
    picture = Image.fromarray(pixels(0, 80, 120))
    middle = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[:, 8:72, 12:108] / 127.5 - 1
    assert torch.equal(Preprocessing((64, 96), 80)(picture), middle)
    with pytest.raises(ValueError, match="need 1 <= size <= resize"):
        Preprocessing((64, 96), 60)
    with pytest.raises(ValueError, match="resize must be at least the shorter side of size, which is 64, got 60"):
        DataConfig(name="folder", size=(64, 96), resize=60)
    with pytest.raises(ValueError, match="size must be at most 8192 pixels, got 9000"):
        Preprocessing((64, 9000))
    with pytest.raises(ValueError, match=r"window of size \(1, 8192\) 67108864 pixels long, and .* at most 8192"):
        Preprocessing((1, 8192), 8192)
    assert Preprocessing((1, 2), 4096).resize == 4096


def test_the_published_transform_draws_from_windows_of_the_same_proportions():
    transform = PublishedTransform((64, 96))
    assert transform.short_sides == (64, 80)
    ramp = Image.fromarray(np.tile(np.arange(240, dtype=np.uint8)[None, :, None], (160, 1, 3)))
    crops = [transform(ramp, sample_generator(0, 0, i))[0, 0] for i in range(200)]
    slopes = torch.stack([((crop[-1] - crop[0]) * 127.5 / 95).abs() for crop in crops])
    # From 240 columns in 96 to 240 in 120.
    assert 1.95 < slopes.min() < 2.05
    assert 2.4 < slopes.max() < 2.55


def test_a_data_set_gives_the_size(tmp_path):
    root = make_folder(tmp_path / "set", {"train/a": 2, "train/b": 2})
    for augment in (False, True):
        config = {"name": "folder", "root": str(root), "size": [24, 16]}
        assert create_dataset(config, "train", augment=augment)[0].image.shape == (3, 24, 16)


# --- maps and costs


@settings(max_examples=15, deadline=None)
@given(SIDES, SIDES, st.sampled_from([{}, {"resblock_updown": False}, {"channel_mult": (1, 2), "num_res_blocks": 1}]))
def test_taps_at_any_size_are_what_a_pass_gives_and_torch_counts(height, width, changes):
    unet = small_unet(**changes)
    with flop_counter() as counter, torch.no_grad():
        # Of two images, since torch normalises no single cell.
        maps = unet.forward_taps(torch.zeros(2, 3, height, width), 0, list(unet.taps))
    offered = unet.taps_at(height, width)
    assert list(offered) == list(unet.taps)
    for name, spec in offered.items():
        assert maps[name].shape == (2, spec.channels, spec.height, spec.width)
    assert 2 * list(offered.values())[-1].flops == counter.get_total_flops()


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (8, 64)])
def test_each_tap_costs_what_torch_counts(size):
    unet = small_unet()
    for name, spec in unet.taps_at(*size).items():
        with flop_counter() as counter, torch.no_grad():
            unet.forward_taps(torch.zeros(1, 3, *size), 0, [name])
        assert spec.flops == counter.get_total_flops()


def test_taps_at_its_own_size_are_its_taps(backbone):
    assert backbone.taps_at(32, 32) == dict(backbone.taps) == dict(tap_specs(small_config()))


def test_maps_of_a_backbone_that_says_no_more_grow_with_the_images(backbone):
    quiet = SimpleNamespace(taps=backbone.taps, image_size=32, multiple=4)
    for size in (32, (64, 32), (8, 48)):
        height, width = sides(size)
        for name, spec in taps_at(quiet, size).items():
            assert spec.size == backbone.taps_at(height, width)[name].size
            assert spec.flops == pytest.approx(backbone.taps[name].flops * height * width / 32**2, abs=1)
    with pytest.raises(ValueError, match="image sides must be multiples of 4, got 32×30"):
        taps_at(quiet, (32, 30))
    quiet.image_size = (16, 64)
    assert taps_at(quiet, (16, 64)) == backbone.taps
    assert sides(taps_at(quiet, 64)["in00"].size) == (4 * 32, 32)
    quiet.image_size = None
    assert taps_at(quiet, (64, 32)) == backbone.taps


@pytest.mark.parametrize("size", [(65, 64), (64, 66), (30, 30)])
def test_sizes_that_the_network_does_not_take_are_refused(backbone, size):
    expected = f"multiples of 4 for this network, got {size[0]}×{size[1]}; choose another size"
    for refused in (
        lambda: backbone.taps_at(*size),
        lambda: extractor_of(backbone, size),
        lambda: flops_per_image(extractor_of(backbone), size),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()
    with pytest.raises(ValueError, match="the image size must be an integer of at least 1, or"):
        backbone.taps_at(32, 0)


@pytest.mark.parametrize("size", [(32, 48), (64, 16)])
def test_costs_of_both_extractors_are_what_torch_counts(backbone, size):
    extractors = [
        extractor_of(backbone, size),
        FeedbackExtractor(backbone, feedback_taps=["out01", "out06"], taps=["mid"], timesteps=[90], image_size=size),
    ]
    for extractor in extractors:
        with flop_counter() as counter, torch.no_grad():
            extractor(torch.zeros(1, 3, *size), [0])
        assert flops_per_image(extractor)[0] == flops_per_image(extractor, size)[0] == counter.get_total_flops()


def test_cached_bytes_of_maps_that_are_not_square():
    key = FeatureKey("mid", 90)
    specs = {key: TapSpec("mid", 1, 10, (4, 12), 0)}
    sizes = {None: 48, 8: 32, 2: 4, (2, 6): 12, (9, 9): 36}
    for size, cells in sizes.items():
        assert cache_bytes(specs, {key: size}, torch.bfloat16) == 2 * 10 * cells


# --- extractors and heads


def test_an_extractor_says_the_maps_of_its_images(backbone):
    extractor = extractor_of(backbone)
    maps = extractor(torch.zeros(2, 3, 24, 40))
    assert {key: maps[key].shape[1:] for key in maps} == {
        key: (spec.channels, spec.height, spec.width) for key, spec in extractor.specs.items()
    }
    assert json.loads(json.dumps(extractor.arguments))["image_size"] == [24, 40]
    again = FeatureExtractor(backbone, **json.loads(json.dumps(extractor.arguments)))
    assert again.specs == extractor.specs
    assert "image_size" not in FeatureExtractor(backbone, taps=["mid"], timesteps=[90]).arguments


HEADS = {
    "linear": lambda specs: LinearHead(specs, 3),
    "cnn": lambda specs: CNNHead(specs, 3, channels=[8, 8]),
    "attention": lambda specs: AttentionHead(specs, 3, width=16, heads=2, pool=5),
    "published": lambda specs: DifFormerHead(specs, 3, width=16, heads=2, pool=5),
    "joint": lambda specs: DifFormerHead(specs, 3, width=16, heads=2, variant="joint", pool=5),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_read_maps_that_are_not_square(backbone, name, tmp_path):
    extractor = FeatureExtractor(backbone, taps=["out05"], timesteps=[90], image_size=(24, 40))
    head = HEADS[name](extractor.specs)
    images = torch.linspace(-1, 1, 2 * 3 * 24 * 40).view(2, 3, 24, 40)
    features = extractor(images, [0, 1])
    [(key, size)] = head.map_sizes.items()
    if size is not None:
        pooled = {key: torch.nn.functional.adaptive_avg_pool2d(features[key], size)}
        torch.testing.assert_close(head.eval()(pooled), head(features))
    # A larger one, an upright one and a square one.
    for other in ((48, 40), (40, 24), (32, 32)):
        assert head.eval()(extractor(torch.zeros(1, 3, *other))).shape == (1, 3)
    head.train()(features).sum().backward()
    classifier = DiffusionClassifier(extractor, head)
    assert classifier.preprocessing == Preprocessing((24, 40))
    save_classifier(tmp_path / "head.safetensors", classifier)
    loaded = load_classifier(tmp_path / "head.safetensors", backbone=backbone)
    assert loaded.preprocessing == Preprocessing((24, 40))
    assert loaded.head.specs == head.specs
    assert torch.equal(loaded.eval()(images, [0, 1]), classifier.eval()(images, [0, 1]))


def test_files_of_squares_say_no_more_than_they_did(backbone, tmp_path):
    extractor = FeatureExtractor(backbone, taps=["out05"], timesteps=[90])
    head = LinearHead(extractor.specs, 3)
    save_classifier(tmp_path / "head.safetensors", DiffusionClassifier(extractor, head))
    description = read_description(tmp_path / "head.safetensors")
    assert description["preprocessing"] == {"size": 32, "resize": None}
    assert sorted(description["extractor"]["arguments"]) == ["clean", "draws", "dtype", "seed", "taps", "timesteps"]
    loaded = load_classifier(tmp_path / "head.safetensors", backbone=backbone)
    assert loaded.extractor.image_size is None
    assert loaded.head.map_sizes == head.map_sizes


def test_the_published_head_has_the_maps_own_grid(backbone):
    extractor = extractor_of(backbone)
    head = DifFormerHead(extractor.specs, 3, width=16, heads=2, pool=8)
    shapes = [tuple(tokenizer.norm.weight.shape[1:]) for tokenizer in head.tokenizers.values()]
    expected = [(min(8, spec.height), min(8, spec.width)) for spec in extractor.specs.values()]
    assert shapes == expected == [sides(size) for size in head.map_sizes.values()]
    assert shapes[0] != shapes[1]
    shares = head.attention_share(extractor(torch.zeros(2, 3, 24, 40)))
    torch.testing.assert_close(sum(shares.values()), torch.ones(2))


@pytest.mark.parametrize("own", [None, (24, 40)])
@pytest.mark.parametrize("size", [(64, 96), (16, 8), (24, 40)])
def test_files_are_read_at_the_size_that_a_head_learned_from(backbone, size, own):
    """Whatever size its specs are for."""
    extractor = FeatureExtractor(backbone, taps=["out05", "mid"], timesteps=[90], image_size=own)
    head = DifFormerHead(extractor.specs, 3, width=16, heads=2, variant="joint")
    classifier = DiffusionClassifier(extractor, head)
    assert classifier.preprocessing == Preprocessing(own or 32)
    classifier(torch.zeros(2, 3, *size)).sum().backward()
    assert classifier.preprocessing == Preprocessing(size)
    assert classifier.preprocess(Image.new("RGB", (100, 80))).shape == (3, *size)
    assert len(classifier.predict(torch.zeros(3, *size))) == 1
    with pytest.raises(ValueError, match=f"learned from images of {size[0]}×{size[1]}, got 32×32"):
        classifier.predict(torch.zeros(3, 32, 32))
    # Another size besides, which shares one side with it: now there are several.
    classifier(torch.zeros(2, 3, size[0], size[1] + 4)).sum().backward()
    with pytest.raises(ValueError, match="do not show one size"):
        classifier.predict(Image.new("RGB", (100, 80)))


def test_maps_averaged_along_one_side_do_not_tell_the_size(backbone):
    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90])
    head = LinearHead(extractor.specs, 3, pool=2)
    head({key: torch.zeros(2, spec.channels, 2, 8) for key, spec in extractor.specs.items()}).sum().backward()
    with pytest.raises(ValueError, match="do not show one size"):
        _ = DiffusionClassifier(extractor, head).preprocessing


def test_networks_are_trained_on_squares():
    with pytest.raises(ValueError, match=r"data\.size, 32×48, must be model\.image_size, 32: .* trained on square"):
        PretrainRecipe(data=DataConfig(name="folder", size=(32, 48)), model=small_config())
