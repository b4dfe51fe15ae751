"""What a run costs, against torch's own counter and what the README states."""

import pytest
import torch
from support import ADM256, small_config, small_unet

from difformer import DifFormerHead, FeatureExtractor, FeedbackExtractor, LinearHead, UNet, create_backbone
from difformer.backbones import UNetBackbone
from difformer.classifier import DiffusionClassifier
from difformer.diffusion import NoiseSchedule
from difformer.engine.cost.costs import cache_bytes, costs, flops_per_image, human_bytes, human_flops
from difformer.models.memory import flop_counter


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear", attention="math")


@pytest.fixture(scope="module")
def adm256():
    with torch.device("meta"):
        return UNetBackbone(UNet(ADM256), NoiseSchedule.linear(1000))


def counted(call):
    with flop_counter() as counter:
        result = call()
    return counter.get_total_flops(), result


EXTRACTORS = {
    "one": lambda b: FeatureExtractor(b, taps=["out02"], timesteps=[90]),
    "draws": lambda b: FeatureExtractor(b, taps=["in03", "mid"], timesteps=[90, 150], draws=2),
    "feedback": lambda b: FeedbackExtractor(b, feedback_taps=["out03"], taps=["out02"], timesteps=[90]),
    "feedbacks": lambda b: FeedbackExtractor(
        b, feedback_taps=["out01", "out06"], taps=["mid"], timesteps=[90, 150], first_pass_taps=["out07"]
    ),
}


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", EXTRACTORS)
def test_costs_are_what_torch_counts(backbone, name, size):
    extractor = EXTRACTORS[name](backbone)
    images = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        expected, _ = counted(lambda: extractor(images, [0]))
    assert flops_per_image(extractor, size)[0] == expected
    assert flops_per_image(extractor)[0] == flops_per_image(extractor, 32)[0]


def test_gradients_through_the_backbone_cost_about_a_second_pass(backbone):
    extractor = EXTRACTORS["feedback"](backbone)
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 2)).train()
    features = extractor(torch.zeros(2, 3, 32, 32), [0, 1])
    expected, _ = counted(lambda: sum(f.sum() for f in features.values()).backward())
    assert costs(classifier).gradient_flops * 2 == pytest.approx(expected, rel=0.1)
    plain = EXTRACTORS["one"](backbone)
    assert costs(DiffusionClassifier(plain, LinearHead(plain.specs, 2))).gradient_flops == 0


def test_published_costs_are_those_of_the_readme(adm256):
    published = FeedbackExtractor(adm256, feedback_taps=[21, 24, 27, 30, 33, 36], taps=[24], timesteps=[150])
    flops, whole = flops_per_image(published)
    assert (round(flops / 1e9), round(whole / 1e9)) == (2487, 4476)
    flops, whole = flops_per_image(FeatureExtractor(adm256, taps=[24], timesteps=[150]))
    assert (round(flops / 1e9), round(whole / 1e9)) == (639, 2238)


def test_parameters_and_bytes_are_counted(backbone):
    extractor = EXTRACTORS["feedback"](backbone)
    head = DifFormerHead(extractor.specs, 5, width=32, heads=2, pool=4)
    found = costs(DiffusionClassifier(extractor, head))
    assert found.backbone == sum(p.numel() for p in small_unet().parameters())
    assert found.backbone_bytes == 4 * found.backbone
    assert found.head == sum(p.numel() for p in head.parameters())
    assert found.feedback == sum(p.numel() for p in extractor.feedback.parameters())
    assert found.trained == found.head + found.feedback
    # Running statistics of the feedback layers are kept too.
    assert 4 * found.trained < found.trained_bytes < 4 * found.trained + 1000


def test_cached_bytes_are_of_pooled_maps(backbone):
    extractor = FeatureExtractor(backbone, taps=["in03", "mid"], timesteps=[90, 150])
    key, other = list(extractor.specs)[:2]
    near, middle = extractor.specs[key], extractor.specs[other]
    assert (near.size, middle.size) == (16, 8)
    head = DifFormerHead(extractor.specs, 2, width=32, heads=2, pool=12)
    numbers = 2 * (near.channels * 12**2 + middle.channels * 8**2)
    assert cache_bytes(extractor.specs, head.map_sizes, torch.bfloat16) == 2 * numbers
    # A linear head's pool may be larger than the map, which is kept as it is.
    assert cache_bytes({key: near}, {key: 20}, torch.bfloat16) == 2 * near.channels * 16**2
    assert cache_bytes(extractor.specs, dict.fromkeys(extractor.specs), torch.float32) == 8 * (
        near.channels * 16**2 + middle.channels * 8**2
    )


def test_attention_below_the_coarsest_level_does_not_matter():
    config = small_config(attention_resolutions=(16, 8, 4))
    with torch.device("meta"):
        odd, usual = (UNetBackbone(UNet(c), NoiseSchedule.linear(1000)) for c in (config, small_config()))
    first, second = (flops_per_image(EXTRACTORS["one"](b), 40) for b in (odd, usual))
    assert first == second


def test_numbers_have_units():
    assert [human_bytes(n) for n in (0, 999, 1000, 2.21e9, 5e15)] == ["0 B", "999 B", "1 kB", "2.21 GB", "5e+03 TB"]
    assert [human_flops(n) for n in (639.3e9, 9.92e19)] == ["639 GFLOP", "99.2 EFLOP"]
