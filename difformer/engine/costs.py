"""What a run costs in computation, memory and disk, before it is begun."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from difformer.backbones import ResumableBackbone
from difformer.classifier import DiffusionClassifier
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.taps import FeatureKey, TapSpec


@dataclass(frozen=True)
class Costs:
    """Numbers of a classifier.

    Attributes:
        backbone: parameters of the frozen model.
        head, feedback: parameters that are trained.
        flops: of the features of one image, a multiply-add counted as two; without the backward pass and the head.
        full_flops: of the same timesteps when every block runs, and for DifFeed twice.
        backbone_bytes, trained_bytes: memory of the weights.
    """

    backbone: int
    head: int
    feedback: int
    flops: float
    full_flops: float
    backbone_bytes: int
    trained_bytes: int

    @property
    def trained(self) -> int:
        return self.head + self.feedback


def costs(classifier: DiffusionClassifier) -> Costs:
    """Counts parameters and operations, without running anything."""
    backbone = classifier.backbone
    frozen = list(backbone.parameters()) if isinstance(backbone, nn.Module) else []
    flops, full = flops_per_image(classifier.extractor)
    return Costs(
        backbone=sum(p.numel() for p in frozen),
        head=_count(classifier.head),
        feedback=_count(classifier.trained_parts) - _count(classifier.head),
        flops=flops,
        full_flops=full,
        backbone_bytes=sum(p.numel() * p.element_size() for p in frozen),
        trained_bytes=sum(t.numel() * t.element_size() for t in classifier.trained_state().values()),
    )


def flops_per_image(extractor: FeatureExtractor | FeedbackExtractor) -> tuple[float, float]:
    """Operations of the features of one image, and of the same when whole networks run."""
    taps = extractor.backbone.taps
    repeats = extractor.noising.repeats
    whole = list(taps.values())[-1].flops
    deepest = max(taps[tap].flops for tap in extractor.taps)
    if isinstance(extractor, FeatureExtractor):
        return deepest * repeats, whole * repeats
    first = max(taps[tap].flops for tap in (*extractor.feedback_taps, *extractor.first_pass_taps))
    start = min((taps[tap] for tap in extractor.mirrors.values()), key=lambda spec: spec.block)
    shared = start.flops if isinstance(extractor.backbone, ResumableBackbone) else 0
    return (first + deepest - shared) * repeats, 2 * whole * repeats


def cache_bytes(
    specs: Mapping[FeatureKey, TapSpec], map_sizes: Mapping[FeatureKey, int | None], dtype: torch.dtype
) -> int:
    """Bytes that the cached features of one image take."""
    return sum(
        specs[key].channels * (specs[key].size if side is None else side) ** 2 * dtype.itemsize
        for key, side in map_sizes.items()
    )


def human_bytes(number: float) -> str:
    """A size with a decimal unit."""
    power = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
