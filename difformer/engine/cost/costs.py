"""What a run costs in computation, memory and disk, before it starts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from difformer.backbones import ResumableBackbone
from difformer.classifier import DiffusionClassifier
from difformer.config import Size, sides
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.features.sizes import taps_at
from difformer.taps import FeatureKey, TapSpec


@dataclass(frozen=True)
class Costs:
    """Numbers of a classifier.

    Attributes:
        backbone: parameters of the frozen model.
        head, feedback: parameters that are trained.
        flops: of the features of one image, a multiply-add counted as two; without the backward pass and the head.
        full_flops: of the same timesteps when every block runs; for DifFeed, of two such passes.
        gradient_flops: approximately, of DifFeed's gradients through the frozen second pass; else 0.
        backbone_bytes, trained_bytes: memory of the weights.
    """

    backbone: int
    head: int
    feedback: int
    flops: float
    full_flops: float
    gradient_flops: float
    backbone_bytes: int
    trained_bytes: int

    @property
    def trained(self) -> int:
        return self.head + self.feedback


@dataclass(frozen=True)
class _Passes:
    """Operations of one image's passes at one timestep."""

    first: float
    second: float
    whole: float


def costs(classifier: DiffusionClassifier, size: Size | None = None) -> Costs:
    """Counts parameters and operations, without running anything; the weights may be on the meta device.

    Args:
        classifier: with its extractor and head.
        size: of the images, a side or (h, w); that of the extractor's `specs` when left out.
    """
    backbone = classifier.backbone
    frozen = list(backbone.parameters()) if isinstance(backbone, nn.Module) else []
    extractor = classifier.extractor
    passes, repeats = _passes(extractor, size), extractor.noising.repeats
    flops, full = flops_per_image(extractor, size)
    return Costs(
        backbone=sum(p.numel() for p in frozen),
        head=_count(classifier.head),
        feedback=_count(classifier.trained_parts) - _count(classifier.head),
        flops=flops,
        full_flops=full,
        gradient_flops=passes.second * repeats,
        backbone_bytes=sum(p.numel() * p.element_size() for p in frozen),
        trained_bytes=sum(t.numel() * t.element_size() for t in classifier.trained_state().values()),
    )


def flops_per_image(extractor: FeatureExtractor | FeedbackExtractor, size: Size | None = None) -> tuple[float, float]:
    """Operations of one image's features, and the same when every block runs.

    Args:
        extractor: which features.
        size: of the image, a side or (h, w); that of the extractor's `specs` when left out.
    """
    passes, repeats = _passes(extractor, size), extractor.noising.repeats
    times = 2 if isinstance(extractor, FeedbackExtractor) else 1
    return (passes.first + passes.second) * repeats, times * passes.whole * repeats


def _passes(extractor: FeatureExtractor | FeedbackExtractor, size: Size | None) -> _Passes:
    taps = taps_at(extractor.backbone, extractor.image_size if size is None else size)
    whole = list(taps.values())[-1].flops
    deepest = max(taps[tap].flops for tap in extractor.taps)
    if isinstance(extractor, FeatureExtractor):
        return _Passes(deepest, 0, whole)
    first = max(taps[tap].flops for tap in (*extractor.feedback_taps, *extractor.first_pass_taps))
    start = min((taps[tap] for tap in extractor.mirrors.values()), key=lambda spec: spec.block)
    shared = start.flops if isinstance(extractor.backbone, ResumableBackbone) else 0
    layers = sum(
        2 * taps[tap].channels * taps[entry].channels * taps[tap].height * taps[tap].width
        for tap, entry in extractor.mirrors.items()
    )
    return _Passes(first, deepest - shared + layers, whole)


def cache_bytes(
    specs: Mapping[FeatureKey, TapSpec], map_sizes: Mapping[FeatureKey, Size | None], dtype: torch.dtype
) -> int:
    """Bytes that the cached features of one image take, at the image size that the specs are for."""
    numbers = 0
    for key, size in map_sizes.items():
        height, width = sides(specs[key].size if size is None else size)
        numbers += specs[key].channels * min(height, specs[key].height) * min(width, specs[key].width)
    return numbers * dtype.itemsize


def human_bytes(number: float) -> str:
    """A size with a decimal unit."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB"))


def human_flops(number: float) -> str:
    """Operations with a decimal unit."""
    return _scaled(number, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(number: float, units: tuple[str, ...]) -> str:
    power = min(len(units) - 1, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.3g} {units[power]}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
