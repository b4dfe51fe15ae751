"""Extraction: keys, noise, chunks, draws, and that no gradient or mode is left behind."""

import json

import numpy as np
import pytest
import torch
from support import recipe_input, small_unet
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

from difformer import FeatureKey, NoiseSchedule, create_backbone, image_noise, q_sample
from difformer.features import FeatureExtractor, Features, FeedbackExtractor


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear")


@pytest.fixture(scope="module")
def images():
    return recipe_input(1, 3, 3, 32, 32).clamp(-1, 1)


IDS = [40, 2, 700]


def close(found, expected, tolerance=1e-5):
    """To rounding, which is that of the largest numbers that were added: maps have values up to 9."""
    assert list(found) == list(expected)
    for key in expected:
        largest = expected[key].abs().max().item()
        torch.testing.assert_close(found[key], expected[key], rtol=tolerance, atol=tolerance * max(1, largest))


def test_features_are_those_of_the_backbone_in_the_order_asked(backbone, images):
    extractor = FeatureExtractor(backbone, taps=["out03", 10, 2], timesteps=[150, 90], seed=5)
    features = extractor(images, IDS)
    expected = [FeatureKey(tap, t) for t in (150, 90) for tap in ("out03", "mid", "in01")]
    assert list(features) == list(extractor.specs) == expected
    for t in (90, 150):
        x_t = q_sample(images, t, image_noise(images, IDS, t, seed=5), backbone.schedule)
        maps = backbone.forward_taps(x_t, t, ["out03", "mid", "in01"])
        close({tap: features[FeatureKey(tap, t)] for tap in maps}, maps)
        for tap in maps:
            assert extractor.specs[FeatureKey(tap, t)] == backbone.taps[tap]


def test_features_of_an_image_do_not_depend_on_its_batch(backbone, images):
    extractor = FeatureExtractor(backbone, taps=["mid", "out02"], timesteps=[90, 300])
    whole = extractor(images, IDS)
    order = [2, 0, 1]
    shuffled = extractor(images[order], [IDS[i] for i in order])
    close({key: value[order] for key, value in whole.items()}, shuffled)
    for i in range(3):
        close({key: value[i : i + 1] for key, value in whole.items()}, extractor(images[i : i + 1], IDS[i : i + 1]))


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 6, 100])
def test_chunks_give_equal_results(backbone, images, chunk_size):
    arguments = {"taps": ["out01"], "timesteps": [90, 150]}
    expected = FeatureExtractor(backbone, **arguments)(images, IDS)
    close(FeatureExtractor(backbone, chunk_size=chunk_size, **arguments)(images, IDS), expected)


def test_running_out_of_memory_makes_chunks(backbone, images, monkeypatch):
    sizes = []

    def forward_taps(x_t, t, taps, **conditioning):
        sizes.append(len(x_t))
        if len(x_t) > 2:
            raise torch.cuda.OutOfMemoryError("pretended")
        return type(backbone).forward_taps(backbone, x_t, t, taps, **conditioning)

    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90, 150])
    expected = extractor(images, IDS)
    monkeypatch.setattr(backbone, "forward_taps", forward_taps)
    close(extractor(images, IDS), expected)
    assert sizes == [6, 3, 2, 2, 2]
    extractor(images, IDS)
    assert sizes[5:] == [2, 2, 2]
    monkeypatch.setattr(
        backbone, "forward_taps", lambda *args, **kw: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError())
    )
    with pytest.raises(torch.cuda.OutOfMemoryError):
        extractor(images, IDS)


def test_draws_average_independent_noise(backbone, images):
    features = FeatureExtractor(backbone, taps=["mid"], timesteps=[90, 300], draws=3)(images, IDS)
    for t in (90, 300):
        draws = [
            backbone.forward_taps(
                q_sample(images, t, image_noise(images, IDS, t, draw=d), backbone.schedule), t, ["mid"]
            )
            for d in range(3)
        ]
        mean = torch.stack([draw["mid"] for draw in draws]).mean(dim=0)
        torch.testing.assert_close(features[FeatureKey("mid", t)], mean, rtol=1e-4, atol=1e-5)


def test_clean_images_have_no_noise_but_a_timestep(backbone, images):
    features = FeatureExtractor(backbone, taps=["mid"], timesteps=[90, 10], clean=True)(images)
    for t in (90, 10):
        expected = backbone.forward_taps(images, t, ["mid"])["mid"]
        torch.testing.assert_close(features[FeatureKey("mid", t)], expected, rtol=1e-4, atol=1e-5)


def test_explicit_noise_overrides(backbone, images):
    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90, 150])
    eps = recipe_input(9, *images.shape)
    features, own = extractor(images, IDS, noise={150: eps}), extractor(images, IDS)
    expected = backbone.forward_taps(q_sample(images, 150, eps, backbone.schedule), 150, ["mid"])["mid"]
    torch.testing.assert_close(features[FeatureKey("mid", 150)], expected, rtol=1e-4, atol=1e-5)
    close({0: features[FeatureKey("mid", 90)]}, {0: own[FeatureKey("mid", 90)]})
    for noise, message in [({91: eps}, "t=91"), ({90: eps[:1]}, r"must have shape \(3, 3, 32, 32\)")]:
        with pytest.raises(ValueError, match=message):
            extractor(images, IDS, noise=noise)
    with pytest.raises(ValueError, match="one draw"):
        FeatureExtractor(backbone, taps=["mid"], timesteps=[90], draws=2)(images, noise={90: eps})


def test_seeds_give_fresh_noise_without_the_global_generator(backbone, images):
    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90])
    state = torch.get_rng_state()
    first = extractor(images, IDS)[FeatureKey("mid", 90)]
    extractor.seed = 1
    assert not torch.allclose(extractor(images, IDS)[FeatureKey("mid", 90)], first, atol=1e-3)
    extractor.seed = 0
    assert torch.equal(extractor(images, IDS)[FeatureKey("mid", 90)], first)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_learns_and_nothing_leaves_evaluation_mode(backbone, images):
    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90]).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert not extractor(images.requires_grad_(False))[FeatureKey("mid", 90)].requires_grad


def test_conditioning_travels_to_the_backbone(images):
    backbone = create_backbone(small_unet(num_classes=4), schedule="cosine")
    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90, 150], chunk_size=2)
    y = torch.tensor([3, 0, 1])
    features = extractor(images, IDS, y=y)
    x_t = q_sample(images, 150, image_noise(images, IDS, 150), backbone.schedule)
    expected = backbone.forward_taps(x_t, 150, ["mid"], y=y)["mid"]
    torch.testing.assert_close(features[FeatureKey("mid", 150)], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="class-conditional; give y"):
        extractor(images, IDS)
    with pytest.raises(ValueError, match="y must be a tensor with one row for each of the 3 images"):
        extractor(images, IDS, y=y[:2])


def test_half_precision_backbones_give_float32_features(images):
    backbone = create_backbone(small_unet(), schedule="linear", dtype=torch.bfloat16)
    feature = FeatureExtractor(backbone, taps=["mid"], timesteps=[90])(images)[FeatureKey("mid", 90)]
    assert feature.dtype == torch.float32
    half = FeatureExtractor(backbone, taps=["mid"], timesteps=[90], dtype=torch.bfloat16)(images)
    assert half[FeatureKey("mid", 90)].dtype == torch.bfloat16


def test_another_kind_of_backbone_works(images):
    """Nothing may assume pixels or a U-Net: here latents are half the size and there is no module at all."""

    class Latent:
        name, digest, dtype, image_size, multiple = "latent", "0", torch.float32, None, 2
        conditioning = {}  # noqa: RUF012 - nothing is ever put into it
        schedule = NoiseSchedule.cosine(100)
        taps = {"block0": small_unet().taps["mid"], "block1": small_unet().taps["mid"]}  # noqa: RUF012

        def describe(self):
            return {}

        def encode(self, images):
            return images[:, :, ::2, ::2]

        def forward_taps(self, x_t, t, taps, *, inject=None):
            return {tap: x_t * float(tap[-1]) + t.view(-1, 1, 1, 1) for tap in taps}

    features = FeatureExtractor(Latent(), taps=[2, "block0"], timesteps=[7, 99], clean=True)(images)
    assert list(features) == [FeatureKey(tap, t) for t in (7, 99) for tap in ("block1", "block0")]
    assert torch.equal(features[FeatureKey("block1", 99)], images[:, :, ::2, ::2] + 99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": ["out99"]}, "unknown tap"),
        ({"taps": [10, "mid"]}, "more than once"),
        ({"timesteps": []}, "at least one"),
        ({"timesteps": [90, 90]}, "must differ"),
        ({"timesteps": [1000]}, r"\[0, 1000\)"),
        ({"timesteps": [-1]}, "non-negative"),
        ({"timesteps": 90}, "sequence"),
        ({"timesteps": [0.5]}, "every timestep must be an integer, got 0.5"),
        ({"timesteps": [True]}, "every timestep must be an integer"),
        ({"clean": 1}, "clean must be true or false"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"dtype": torch.int8}, "dtype must be a floating-point type"),
        ({"dtype": "float99"}, "dtype must be a floating-point type.*got 'float99'"),
        ({"draws": 0}, "draws"),
        ({"draws": 2, "clean": True}, "no noise to draw"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_bad_arguments_raise(backbone, changes, message):
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(backbone, **({"taps": ["mid"], "timesteps": [90]} | changes))


def test_an_empty_batch_gives_empty_features(backbone, images):
    features = FeatureExtractor(backbone, taps=["mid"], timesteps=[90, 150])(images[:0], [])
    assert [feature.shape for feature in features.values()] == [(0, 64, 8, 8)] * 2


def test_images_say_the_device_whatever_the_default(backbone, images):
    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90])
    with torch.device("meta"):
        features = extractor(images)
    close(features, extractor(images))


def test_torch_looks_into_features(backbone, images):
    extractor = FeatureExtractor(backbone, taps=["mid", "out01"], timesteps=[90])
    flat, form = tree_flatten(extractor(images, IDS))
    assert [feature.shape for feature in flat] == [(3, 64, 8, 8), (3, 64, 8, 8)]
    again = tree_unflatten(flat, form)
    assert list(again) == list(extractor.specs)
    with pytest.raises(KeyError, match="no feature 'mid'"):
        again["mid"]
    assert [path[0].key for path, _ in tree_flatten_with_path(again)[0]] == list(extractor.specs)
    doubled = torch.func.vmap(lambda features: Features({key: 2 * value for key, value in features.items()}))(again)
    close(doubled, {key: 2 * value for key, value in again.items()})


def test_bad_ids_raise(backbone, images):
    with pytest.raises(ValueError, match="ids must be 3 integers"):
        FeatureExtractor(backbone, taps=["mid"], timesteps=[90])(images, [1, 2])


@pytest.mark.parametrize("cls", [FeatureExtractor, FeedbackExtractor])
def test_arguments_are_plain_and_build_the_same_again(backbone, cls):
    own = {"feedback_taps": np.array([12]), "gate": np.bool_(True)} if cls is FeedbackExtractor else {}
    extractor = cls(
        backbone,
        taps=["out02"],
        timesteps=np.array([90, 150]),
        seed=np.int64(3),
        draws=np.int64(2),
        clean=np.bool_(False),
        dtype=torch.bfloat16,
        **own,
    )
    extractor.seed = np.int64(4)
    arguments = json.loads(json.dumps(extractor.arguments))
    assert arguments == extractor.arguments
    assert (arguments["timesteps"], arguments["seed"], arguments["draws"]) == ([90, 150], 4, 2)
    again = cls(backbone, **arguments)
    assert again.arguments == arguments
    assert again.dtype == torch.bfloat16
    assert {type(key.t) for key in extractor.specs} == {int}
