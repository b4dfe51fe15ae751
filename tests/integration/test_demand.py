"""What features and training ask of a machine, in operations and bytes: the guard against losing speed or memory.

Counted on fake tensors at the size of ADM-256, so that nothing is computed and no timing is involved.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from difformer import (
    PRESETS,
    AttentionHead,
    DifFormerHead,
    FeatureExtractor,
    FeedbackExtractor,
    NoiseSchedule,
    UNet,
    UNetBackbone,
)
from difformer.models.memory import Demand, TensorMemory, demand
from difformer.models.plan import tap_specs

CONFIG = PRESETS["adm256_uncond"].config
FED_BACK = (21, 24, 27, 30, 33, 36)
GIGA, MEGA = 1e9, 1e6


@pytest.fixture
def schedule():
    """A schedule of real numbers, in a test where all else is fake."""
    schedule = NoiseSchedule.linear(1000)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield schedule


def flops_to(block):
    return list(tap_specs(CONFIG).values())[block - 1].flops


def demand_of_features(schedule, blocks, timesteps):
    extractor = FeatureExtractor(UNetBackbone(UNet(CONFIG), schedule), taps=blocks, timesteps=timesteps)
    images = torch.zeros(1, 3, 256, 256)
    noise = {t: torch.zeros_like(images) for t in timesteps}
    return demand(lambda: extractor(images, noise=noise))


def demand_of_feedback_step(schedule, gradient_checkpointing):
    backbone = UNetBackbone(UNet(CONFIG, gradient_checkpointing=gradient_checkpointing), schedule)
    extractor = FeedbackExtractor(backbone, feedback_taps=FED_BACK, taps=[24], timesteps=[150]).train()
    head = AttentionHead(extractor.specs, 1000).train()
    images = torch.zeros(1, 3, 256, 256)
    return demand(lambda: head(extractor(images, noise={150: torch.zeros_like(images)})).sum().backward())


def test_one_block(schedule):
    found = demand_of_features(schedule, [24], [150])
    assert found.flops == flops_to(24)
    assert found.peak_bytes < 356 * MEGA


def test_difformers_features(schedule):
    """Three timesteps as one batch, each up to block 30 and no further."""
    found = demand_of_features(schedule, [19, 24, 30], [90, 150, 300])
    assert found.flops == 3 * flops_to(30)
    assert found.peak_bytes < 1102 * MEGA


def test_feedback_step(schedule):
    kept, recomputed = (demand_of_feedback_step(schedule, checkpointing) for checkpointing in (False, True))
    assert kept.flops < 3033 * GIGA
    assert kept.peak_bytes < 1835 * MEGA
    assert recomputed.peak_bytes < 966 * MEGA
    # The second pass is computed twice, up to block 24 and not before its first injection.
    assert kept.flops < recomputed.flops < kept.flops + 500 * GIGA


def test_heads_step(schedule):
    """The published head; computed for all tokens, and not for the CLS tokens alone, its last block adds 123 GFLOP."""
    extractor = FeatureExtractor(UNetBackbone(UNet(CONFIG), schedule), taps=[19, 24, 30], timesteps=[90, 150, 300])
    head = DifFormerHead(extractor.specs, 1000).train()
    features = {key: torch.zeros(1, spec.channels, spec.size, spec.size) for key, spec in extractor.specs.items()}
    found = demand(lambda: head(features).sum().backward())
    assert found.flops < 176 * GIGA


def test_counts_what_is_alive():
    def work():
        first = torch.zeros(1000)
        second = first + 1
        view = second[:10]
        del first, second
        torch.zeros(500)
        return view

    with TensorMemory() as memory:
        left = work()
    assert (memory.peak, memory.current) == (8000, 4000)
    del left
    assert memory.current == 0


def test_counts_no_tensor_that_was_there():
    before = torch.zeros(1000, 10)
    assert demand(lambda: before.view(-1).add_(1)) == Demand(0, 0)
    assert demand(lambda: before @ before.T) == Demand(2 * 1000 * 1000 * 10, 4_000_000)
