"""What a run costs in computation, memory and disk, before it is begun."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from difformer.backbones import Backbone, ResumableBackbone
from difformer.classifier import DiffusionClassifier
from difformer.config import UNetConfig
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.models.plan import tap_specs
from difformer.taps import FeatureKey, TapSpec


@dataclass(frozen=True)
class Costs:
    """Numbers of a classifier.

    Attributes:
        backbone: parameters of the frozen model.
        head, feedback: parameters that are trained.
        flops: of the features of one image, a multiply-add counted as two; without the backward pass and the head.
        full_flops: of the same timesteps when every block runs, and for DifFeed twice.
        gradient_flops: of DifFeed's gradients through the frozen second pass, about; else 0.
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


def costs(classifier: DiffusionClassifier, size: int | None = None) -> Costs:
    """Counts parameters and operations, without running anything; the weights may be on the meta device.

    Args:
        classifier: with its extractor and head.
        size: side of the images; the backbone's own when left out.
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


def flops_per_image(extractor: FeatureExtractor | FeedbackExtractor, size: int | None = None) -> tuple[float, float]:
    """Operations of the features of one image, and of the same when whole networks run.

    Args:
        extractor: which features.
        size: side of the image; the backbone's own when left out.
    """
    passes, repeats = _passes(extractor, size), extractor.noising.repeats
    times = 2 if isinstance(extractor, FeedbackExtractor) else 1
    return (passes.first + passes.second) * repeats, times * passes.whole * repeats


def _passes(extractor: FeatureExtractor | FeedbackExtractor, size: int | None) -> _Passes:
    taps = _taps_at(extractor.backbone, size)
    whole = list(taps.values())[-1].flops
    deepest = max(taps[tap].flops for tap in extractor.taps)
    if isinstance(extractor, FeatureExtractor):
        return _Passes(deepest, 0, whole)
    first = max(taps[tap].flops for tap in (*extractor.feedback_taps, *extractor.first_pass_taps))
    start = min((taps[tap] for tap in extractor.mirrors.values()), key=lambda spec: spec.block)
    shared = start.flops if isinstance(extractor.backbone, ResumableBackbone) else 0
    layers = sum(
        2 * taps[tap].channels * taps[entry].channels * taps[tap].size ** 2 for tap, entry in extractor.mirrors.items()
    )
    return _Passes(first, deepest - shared + layers, whole)


def _taps_at(backbone: Backbone, size: int | None) -> Mapping[str, TapSpec]:
    """The taps for images of a size, where the backbone says how its cost depends on that."""
    config = getattr(backbone, "config", None)
    if not isinstance(config, UNetConfig) or size in (None, config.image_size):
        return backbone.taps
    coarsest = config.image_size // config.downsampling
    attending = [r * size // config.image_size for r in config.attention_resolutions if r >= coarsest]
    return tap_specs(replace(config, image_size=size, attention_resolutions=tuple(attending)))


def cache_bytes(
    specs: Mapping[FeatureKey, TapSpec], map_sizes: Mapping[FeatureKey, int | None], dtype: torch.dtype
) -> int:
    """Bytes that the cached features of one image of the backbone's size take."""
    sides = {key: specs[key].size if side is None else min(side, specs[key].size) for key, side in map_sizes.items()}
    return sum(specs[key].channels * side**2 * dtype.itemsize for key, side in sides.items())


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
