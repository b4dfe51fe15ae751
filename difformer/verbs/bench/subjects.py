"""The measured architectures: with random weights, what is read from them, and the operations and memory it takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from difformer.backbones import UNetBackbone
from difformer.checkpoints import PRESETS
from difformer.config import UNetConfig
from difformer.diffusion import NoiseSchedule
from difformer.heads import DetectionHead, HeatmapHead, UperNetHead
from difformer.models import UNet
from difformer.models.memory import Demand, demand
from difformer.verbs.bench.cases import (
    CLASSES,
    DenseCase,
    FeatureCase,
    FeedbackCase,
    Setting,
    TrainingCase,
    seeded,
)
from difformer.verbs.bench.openai import HookedNetwork

# Of DifFormer's published recipe.
EPOCHS = 28
TRAINING, CACHED = "DifFormer training step", f"DifFormer, {EPOCHS} epochs, extracted once"
Case = FeatureCase | TrainingCase | FeedbackCase | DenseCase
_START_AT_ZERO = ("out_layers.3.weight", "proj_out.weight", "out.2.weight")


@dataclass(frozen=True)
class Subject:
    """An architecture, and what is read from it.

    Attributes:
        config: the architecture; its weights are random.
        block: the one whose features are read alone.
        fused: DifFormer's blocks.
        timesteps: DifFormer's; the second to last is that of the single block and of DifFeed.
        fed_back: DifFeed's feedback list.
        batch_sizes: on a CPU and on a GPU.
        head: arguments of DifFormer and of DifFeed's head.
        dense: blocks of different map sizes, for maps, boxes and points.
        dense_width: of the heads for these.
        finest_stride: to which finer maps are averaged there.
    """

    config: UNetConfig
    block: str | int
    fused: tuple[str | int, ...]
    timesteps: tuple[int, ...]
    fed_back: tuple[str | int, ...]
    batch_sizes: tuple[int, int]
    head: Mapping[str, Any] = field(default_factory=dict)
    dense: tuple[str | int, ...] = ()
    dense_width: int = 64
    finest_stride: int = 1

    def images(self, batch_size: int | None, device: torch.device) -> int:
        """How many go through at once."""
        return batch_size or self.batch_sizes[device.type == "cuda"]


SUBJECTS = {
    "small": Subject(
        UNetConfig(32, 64, (1, 1, 2), 1, (16, 8), num_head_channels=32),
        "out01", ("mid", "out01", "out03"), (10, 50, 100), ("out00", "out01", "out03"), (32, 256),
        {"width": 128, "heads": 4}, ("out00", "out01", "out03"),
    ),
    # OpenAI's 64-pixel network, narrower: attention among 1,024 positions, in the other order of its weights.
    "large_maps": Subject(
        UNetConfig(
            64, 32, (1, 2, 3, 4), 1, (32, 16, 8), num_head_channels=32, resblock_updown=True,
            use_new_attention_order=True,
        ),
        "out04", ("mid", "out02", "out04"), (10, 50, 100), ("out01", "out03", "out05"), (8, 128),
        {"width": 128, "heads": 4}, ("out01", "out03", "out05"), finest_stride=2,
    ),
    "adm256": Subject(
        PRESETS["adm256_uncond"].config, 24, (19, 24, 30), (90, 150, 300), (21, 24, 27, 30, 33, 36), (1, 8),
        dense=(24, 27, 30, 33), dense_width=256, finest_stride=4,
    ),
}  # fmt: skip


def build_setting(
    subject: Subject, device: torch.device, dtype: torch.dtype, batch_size: int | None, schedule: NoiseSchedule
) -> Setting:
    """Networks with random weights, and random images; fake ones under a `FakeTensorMode`."""
    with seeded(device):
        unet = UNet(subject.config)
        for name, parameter in unet.named_parameters():
            # Layers that start at zero would make blocks trivial.
            if name.endswith(_START_AT_ZERO):
                nn.init.normal_(parameter, std=0.02)
        size = subject.images(batch_size, device)
        side = subject.config.image_size
        images = torch.rand(size, 3, side, side) * 2 - 1
        labels = torch.randint(0, CLASSES, (size,))
        baseline = HookedNetwork(unet, device)
    if dtype != unet.dtype:
        unet.cast_torso(dtype)
    return Setting(UNetBackbone(unet, schedule), baseline, images, labels)


def cases(subject: Subject, setting: Setting) -> dict[str, Callable[[], Case]]:
    """What makes each case, by its name; each holds memory, so they are made one at a time."""
    middle, width, finest = subject.timesteps[-2], subject.dense_width, {"finest_stride": subject.finest_stride}
    dense = {
        "segmentation by UperNet": (UperNetHead, {"width": width, **finest}),
        "detection by Faster R-CNN": (DetectionHead, {"width": width, **finest}),
        "landmarks by heat maps": (HeatmapHead, {"width": width, "stride": max(2, subject.finest_stride)}),
    }
    return {
        f"features, block {subject.block}": lambda: FeatureCase(setting, [subject.block], [middle]),
        f"DifFormer features, {len(subject.fused)} blocks × {len(subject.timesteps)} timesteps": lambda: FeatureCase(
            setting, subject.fused, subject.timesteps
        ),
        TRAINING: lambda: TrainingCase(setting, subject.fused, subject.timesteps, subject.head),
        "DifFeed training step": lambda: FeedbackCase(setting, subject.fed_back, subject.block, middle, subject.head),
    } | {
        name: partial(DenseCase, setting, subject.dense, middle, head, arguments)
        for name, (head, arguments) in dense.items()
    }


def count_demands(subject: Subject, batch_size: int | None) -> dict[str, tuple[Demand, Demand]]:
    """Operations and memory of ours and theirs by case, in float32, counted on fake tensors; with cached training."""
    # Its values are checked when it is made, so it must be real; what it computes later is fake.
    schedule = NoiseSchedule.linear(1000)
    found = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        setting = build_setting(subject, torch.device("cpu"), torch.float32, batch_size, schedule)
        for name, make in cases(subject, setting).items():
            case = make()
            found[name] = demand(case.ours), demand(case.theirs)
            if isinstance(case, TrainingCase):
                extract, cached, live = demand(case.extract), demand(case.cached), found[name][1]
                ours = Demand(extract.flops + EPOCHS * cached.flops, max(extract.peak_bytes, cached.peak_bytes))
                found[CACHED] = ours, Demand(EPOCHS * live.flops, live.peak_bytes)
    return found
