"""Networks built with torch.compile against the same as they are."""

import pytest
import torch
from support import load_recipe

from difformer import FeatureExtractor, FeedbackExtractor, NoiseSchedule, UNet, UNetBackbone, UNetConfig

pytestmark = pytest.mark.slow
CONFIG = UNetConfig(16, 32, (1, 2), 1, (8,), num_head_channels=16)
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def backbones():
    plain, compiled = (UNetBackbone(load_recipe(UNet(CONFIG), 7).eval(), NoiseSchedule.linear(1000)) for _ in range(2))
    compiled.compile()
    assert compiled.unet.state_dict().keys() == plain.unet.state_dict().keys()
    return plain, compiled


def test_same_features(backbones):
    expected, found = (FeatureExtractor(b, taps=["in01", "out00"], timesteps=[10, 90])(IMAGES) for b in backbones)
    for key, feature in expected.items():
        torch.testing.assert_close(found[key], feature, rtol=1e-4, atol=1e-4)


def test_same_feedback_and_gradients(backbones):
    torch.manual_seed(1)
    plain, compiled = (FeedbackExtractor(b, feedback_taps=["out01"], taps=["mid"], timesteps=[90]) for b in backbones)
    compiled.feedback.load_state_dict(plain.feedback.state_dict())
    (key,) = plain.specs
    expected, found = plain(IMAGES)[key], compiled(IMAGES)[key]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for feature in (expected, found):
        feature.square().sum().backward()
    for one, other in zip(plain.feedback.parameters(), compiled.feedback.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-3 * float(one.grad.abs().max()))
