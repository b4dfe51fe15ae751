"""What every head checks about the features it is given."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from difformer.config import as_call
from difformer.heads.registry import Head
from difformer.taps import FeatureKey, TapSpec

# The sides (h, w) of the maps in a batch, in the order of a head's specs.
MapSides = tuple[tuple[int, int], ...]


def check_specs(specs: Mapping[FeatureKey, TapSpec]) -> dict[FeatureKey, TapSpec]:
    """A copy of the specifications a head is built for; raises ValueError when there are none."""
    if not isinstance(specs, Mapping) or not all(isinstance(spec, TapSpec) for spec in specs.values()):
        raise ValueError(f"a head is built for an extractor's specs, some or all of them, got {type(specs).__name__}")
    if not specs:
        raise ValueError("a head needs at least one feature; give an extractor's specs")
    if strangers := [key for key in specs if not isinstance(key, FeatureKey)]:
        raise ValueError(f"the keys of specs must be FeatureKeys, as an extractor's are, got {strangers}")
    return dict(specs)


def single_key(specs: Mapping[FeatureKey, TapSpec]) -> FeatureKey:
    """The one key of a probe; raises ValueError when there are more."""
    if len(specs) != 1:
        raise ValueError(f"this head reads exactly one feature, got {list(specs)}; choose one tap and one timestep")
    return next(iter(specs))


class _Head(Head, Protocol):
    """A head of this package.

    Attributes:
        training: whether it learns.
        learned_from: the sides of the maps it has learned from so far.
    """

    training: bool

    @property
    def learned_from(self) -> set[MapSides]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def receive(head: _Head, features: Mapping[FeatureKey, Tensor]) -> dict[FeatureKey, Tensor]:
    """The features a head was built for, in its order; other features are ignored.

    While the head learns, the sides of the maps are noted in its `learned_from`.

    Args:
        head: the one that reads them.
        features: (B, C, h, w) by key.

    Raises:
        ValueError: a feature is missing or has another shape than (B, C, h, w) with its tap's channels.
    """
    specs = head.specs
    if not isinstance(features, Mapping):
        raise ValueError(
            f"a head reads features, as an extractor gives them, got {type(features).__name__}; "
            "DiffusionClassifier(extractor, head) classifies images"
        )
    missing = [key for key in specs if key not in features]
    if missing:
        raise ValueError(f"features lack {missing}; there are {list(features)}")
    if any(not isinstance(features[key], Tensor) or not features[key].ndim for key in specs):
        raise ValueError("features must be tensors (B, C, h, w) by key")
    batch = next(features[key].shape[0] for key in specs)
    for key, spec in specs.items():
        shape = tuple(features[key].shape)
        if len(shape) != 4 or shape[:2] != (batch, spec.channels):
            raise ValueError(f"the feature {key} must have shape ({batch}, {spec.channels}, h, w), got {shape}")
    if head.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        head.learned_from.add(tuple((features[key].shape[2], features[key].shape[3]) for key in specs))
    return {key: features[key] for key in specs}


def describe(head: _Head) -> str:
    """One line about a head; its `__repr__`."""
    keys = ", ".join(f"{key.tap} at t={key.t}" + f" in round {key.round}" * bool(key.round) for key in head.specs)
    weights = sum(p.numel() for p in head.parameters())
    return (
        f"{type(head).__name__}({keys}; num_classes={head.num_classes}, {as_call(head.arguments)}; {weights:,} weights)"
    )
