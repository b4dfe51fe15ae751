"""DifFeed against a plain computation: two whole passes with hooks, no code of ours but the network's blocks."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import ADM256, recipe_input, small_unet
from torch import nn

from difformer import FeatureKey, UNet, UNetBackbone, create_backbone, q_sample
from difformer.diffusion import NoiseSchedule
from difformer.features import FeedbackExtractor
from difformer.models.memory import flop_counter

PUBLISHED = {"feedback_taps": [21, 24, 27, 30, 33, 36], "taps": [24], "timesteps": [150]}
SMALL = {"feedback_taps": ["out01", "out04", "out07"], "taps": ["out02"], "timesteps": [150]}


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear")


@pytest.fixture(scope="module")
def images():
    return recipe_input(1, 4, 3, 32, 32).clamp(-1, 1)


def plain_two_passes(unet, layers, mirrors, x_t, t):
    """Every block's output in the first and the second pass. `layers` map decoder taps to modules."""
    blocks = dict(zip(unet.taps, [*unet.input_blocks, unet.middle_block, *unet.output_blocks], strict=True))
    passes = []
    for feed in (False, True):
        outputs, handles = {}, []
        for name, block in blocks.items():

            def keep(module, args, output, name=name, feed=feed, outputs=outputs):
                for tap in [tap for tap, into in mirrors.items() if into == name] if feed else []:
                    # one timestep after another, as the published code does
                    value = torch.cat([layers[tap](one) for one in passes[0][tap].chunk(len(t.unique()))])
                    output = output + F.interpolate(value, output.shape[2:], mode="bilinear", align_corners=False)
                outputs[name] = output
                return output

            handles.append(block.register_forward_hook(keep))
        with torch.set_grad_enabled(feed):
            unet(x_t, t)
        passes.append(outputs)
        for handle in handles:
            handle.remove()
    return passes


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"feedback_taps": ["out08", "out03"]},
        {"feedback_taps": ["out00"], "taps": ["out08", "mid"]},
        {"norm": "group"},
        {"norm": "none"},
        {"first_pass_taps": ["in01", "out06", "in07"], "taps": ["out04", "in02"]},
        {"timesteps": [90, 300]},
    ],
    ids=["plain", "unsorted", "one", "group", "none", "both passes", "timesteps"],
)
def test_it_equals_a_plain_two_pass_computation(backbone, images, changes, training):
    extractor = FeedbackExtractor(backbone, **(SMALL | changes)).train(training)
    layers = {tap: copy.deepcopy(layer) for tap, layer in zip(extractor.feedback_taps, extractor.feedback, strict=True)}
    features = extractor(images, ids=[5, 6, 7, 8])
    x_t, t = extractor.noising.apply(images, backbone.schedule, 0, [5, 6, 7, 8])
    expected = plain_two_passes(backbone.unet, layers, extractor.mirrors, x_t, t)

    assert list(features) == list(extractor.specs)
    rounds = {0: extractor.first_pass_taps, 1: extractor.taps}
    assert set(features) == {
        FeatureKey(tap, t, number)
        for number, taps in rounds.items()
        for tap in taps
        for t in extractor.noising.timesteps
    }
    weights = {}
    for key, feature in features.items():
        index = extractor.noising.timesteps.index(key.t)
        reference = expected[key.round][key.tap][index * 4 : index * 4 + 4]
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)
        assert feature.requires_grad == (key.round == 1 and key.tap != "in00")
        weights[key] = recipe_input(len(weights), *feature.shape)
    sum((features[key] * weights[key]).sum() for key in features if key.round).backward()
    sum(
        (expected[1][key.tap].unflatten(0, (-1, 4))[extractor.noising.timesteps.index(key.t)] * weights[key]).sum()
        for key in features
        if key.round
    ).backward()
    for tap, layer in zip(extractor.feedback_taps, extractor.feedback, strict=True):
        for mine, reference in zip(layer.parameters(), layers[tap].parameters(), strict=True):
            if reference.grad is None:  # feeds a block after the last one read
                assert mine.grad is None
                continue
            error = (mine.grad - reference.grad).norm() / (reference.grad.norm() + 1e-6)
            assert error < 1e-3
        for mine, reference in zip(layer.buffers(), layers[tap].buffers(), strict=True):
            torch.testing.assert_close(mine, reference)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_backbone_that_cannot_resume_runs_two_passes(backbone, images):
    names = (
        "name", "digest", "dtype", "image_size", "multiple", "conditioning", "taps", "schedule", "encode",
        "forward_taps", "describe",
    )  # fmt: skip
    once = SimpleNamespace(**{name: getattr(backbone, name) for name in names})
    extractor = FeedbackExtractor(backbone, **SMALL).eval()
    other = FeedbackExtractor(once, **SMALL).eval()
    other.feedback.load_state_dict(extractor.feedback.state_dict())
    for key, feature in extractor(images).items():
        torch.testing.assert_close(other(images)[key], feature, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def adm256():
    with torch.device("meta"):
        unet = UNet(ADM256)
    return UNetBackbone(unet, NoiseSchedule.linear())


def test_flops_of_adm256_with_the_published_list(adm256):
    """At most 1989 + 638 GFLOP, where two whole passes need 4476."""
    with torch.device("meta"):
        extractor = FeedbackExtractor(adm256, **PUBLISHED).eval()
        images = torch.zeros(1, 3, 256, 256)
        with flop_counter() as counter, torch.no_grad():
            extractor(images, noise={150: images})
    taps = adm256.taps
    layers = sum(
        2 * taps[tap].channels * taps[into].channels * taps[tap].size ** 2 for tap, into in extractor.mirrors.items()
    )
    first, second, shared = taps["out16"].flops, taps["out04"].flops, taps["in01"].flops
    assert counter.get_total_flops() == first + second - shared + layers
    assert counter.get_total_flops() / 1e9 < 1989 + 638


def test_parameters_of_the_published_layers(adm256):
    with torch.device("meta"):
        extractor = FeedbackExtractor(adm256, **PUBLISHED)
    learned = {name: p.numel() for name, p in extractor.named_parameters() if p.requires_grad}
    assert sum(learned.values()) == 2_759_680
    assert all(name.startswith("feedback.") for name in learned)
    assert {tap: adm256.taps[into].block for tap, into in extractor.mirrors.items()} == {
        "out01": 17, "out04": 14, "out07": 11, "out10": 8, "out13": 5, "out16": 2
    }  # fmt: skip


def test_only_feedback_layers_learn_and_only_they_train(backbone, images):
    extractor = FeedbackExtractor(backbone, **SMALL).train()
    extractor(images)[FeatureKey("out02", 150, 1)].square().mean().backward()
    for name, parameter in extractor.named_parameters():
        if name.startswith("feedback."):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
        else:
            assert not parameter.requires_grad
            assert parameter.grad is None
    assert not any(module.training for module in backbone.modules())
    assert all(layer.training for layer in extractor.feedback)


def test_a_gate_starts_from_the_features_without_feedback(backbone, images):
    extractor = FeedbackExtractor(backbone, gate=True, first_pass_taps=["out02"], **SMALL)
    features = extractor(images)
    torch.testing.assert_close(features[FeatureKey("out02", 150, 1)], features[FeatureKey("out02", 150, 0)])
    features[FeatureKey("out02", 150, 1)].square().mean().backward()
    for layer in extractor.feedback:
        assert layer.gate.grad.abs().sum() > 0
        nn.init.ones_(layer.gate)
    assert not torch.allclose(
        extractor(images)[FeatureKey("out02", 150, 1)], features[FeatureKey("out02", 150, 0)], atol=1e-2
    )


def test_gradient_checkpointing_changes_no_gradient(images):
    gradients = []
    for checkpointing in (False, True):
        backbone = create_backbone(small_unet(), schedule="linear", gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        extractor = FeedbackExtractor(backbone, **SMALL)
        extractor(images)[FeatureKey("out02", 150, 1)].square().mean().backward()
        gradients.append([parameter.grad for parameter in extractor.feedback.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 1024.0)])
def test_half_precision_trains(images, dtype, scale):
    """bfloat16 as it is, float16 with a loss scale."""
    gradients = []
    for torso in (torch.float32, dtype):
        torch.manual_seed(0)
        extractor = FeedbackExtractor(create_backbone(small_unet(), schedule="linear", dtype=torso), **SMALL)
        loss = extractor(images)[FeatureKey("out02", 150, 1)].square().mean()
        (loss * scale).backward()
        gradients.append(torch.cat([p.grad.flatten() / scale for p in extractor.feedback.parameters()]))
    assert gradients[1].isfinite().all()
    assert F.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feedback_taps": ["in01"]}, "in01 cannot be fed back; choose decoder taps, of out00, out01"),
        ({"feedback_taps": ["mid"]}, "mid cannot be fed back"),
        ({"feedback_taps": []}, "no tap"),
        ({"feedback_taps": ["out01", 12]}, "more than once"),
        ({"taps": ["in00"]}, "feeds in07, which comes after in00"),
        ({"taps": []}, "no tap"),
        ({"first_pass_taps": ["out99"]}, "unknown tap"),
        ({"norm": "layer"}, "unknown norm 'layer'; expected one of batch, group, none"),
    ],
)
def test_bad_arguments_raise(backbone, changes, message):
    with pytest.raises(ValueError, match=message):
        FeedbackExtractor(backbone, **(SMALL | changes))


def test_both_passes_see_the_same_noise(backbone, images):
    extractor = FeedbackExtractor(backbone, gate=True, **SMALL)
    x_t = q_sample(images, 150, eps := recipe_input(3, *images.shape), backbone.schedule)
    found = extractor(images, noise={150: eps})[FeatureKey("out02", 150, 1)]
    torch.testing.assert_close(found, backbone.forward_taps(x_t, 150, ["out02"])["out02"], rtol=1e-4, atol=1e-5)
