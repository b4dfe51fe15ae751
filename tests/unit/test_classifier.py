"""Classifiers: contracts across extractors and heads, and what may be put together."""

import numpy as np
import pytest
import torch
from example_classifiers import CLASSIFIERS, IDS, SMALL, linear, plain
from support import recipe_input, small_unet

from difformer import DiffusionClassifier, FeatureKey, FeedbackExtractor, create_backbone
from difformer.heads import DifFormerHead, LinearHead


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear")


@pytest.fixture(scope="module")
def images():
    return recipe_input(1, 3, 3, 32, 32).clamp(-1, 1)


@pytest.fixture(params=CLASSIFIERS)
def classifier(request, backbone):
    torch.manual_seed(0)
    extractor, head = CLASSIFIERS[request.param](backbone)
    return DiffusionClassifier(extractor, head(extractor.specs), class_names=["cat", "dog", "bird"])


def test_a_step_trains_every_trainable_parameter_and_no_other(classifier, images):
    classifier.train()
    frozen = {name: p.clone() for name, p in classifier.named_parameters() if "backbone" in name}
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    classifier(images, IDS).square().sum().backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.requires_grad == ("backbone" not in name)
        assert (parameter.grad is not None) == parameter.requires_grad, name
    optimizer.step()
    for name, parameter in frozen.items():
        assert torch.equal(classifier.get_parameter(name), parameter)


def test_logits_do_not_depend_on_the_batch(classifier, images):
    classifier.eval()
    logits = classifier(images, IDS)
    assert logits.shape == (3, 3)
    for i in range(3):
        alone = classifier(images[i : i + 1], [IDS[i]])
        torch.testing.assert_close(alone, logits[i : i + 1], rtol=1e-4, atol=1e-4)
    flipped = classifier(images.flip(0), IDS[::-1])
    torch.testing.assert_close(flipped, logits.flip(0), rtol=1e-4, atol=1e-4)


def test_parts_must_fit(backbone):
    extractor = plain(backbone, ["out02"], [90])
    head = LinearHead(plain(backbone, ["mid"], [90]).specs, 3)
    with pytest.raises(ValueError, match=r"the head reads .*mid.*but the extractor gives .*out02"):
        DiffusionClassifier(extractor, head)
    for names in (["a", "b"], ["a", "a", "b"], [0, 1, 2], "abc"):
        with pytest.raises(ValueError, match="3 different names"):
            linear(backbone, class_names=names)


def test_every_feedback_layer_must_reach_the_head(backbone, images):
    """Layers without a gradient stop training on several processes."""
    extractor = FeedbackExtractor(
        backbone, feedback_taps=["out01", "out07"], taps=["out02", "in07", "in02"], timesteps=[90], first_pass_taps=[10]
    )

    def build(*keys):
        specs = {key: extractor.specs[key] for key in keys}
        return DiffusionClassifier(extractor, DifFormerHead(specs, 3, **SMALL))

    with pytest.raises(ValueError, match=r"reads no feature of the second pass \(round 1\)"):
        build(FeatureKey("mid", 90))
    with pytest.raises(ValueError, match=r"from out01 into in07 comes after in02, the deepest tap that the head"):
        build(FeatureKey("mid", 90), FeatureKey("in02", 90, 1))
    for keys in ([FeatureKey("in02", 90, 1), FeatureKey("in07", 90, 1)], [FeatureKey("out02", 90, 1)]):
        extractor.zero_grad()
        build(*keys)(images).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in extractor.feedback.parameters())


def test_class_names_may_be_numpys(backbone):
    classifier = linear(backbone, class_names=np.array(["cat", "dog", "bird"]))
    assert classifier.class_names == ("cat", "dog", "bird")
    assert {type(name) for name in classifier.class_names} == {str}
