"""What every head checks of the features it is given."""

from collections.abc import Mapping

from torch import Tensor

from difformer.taps import FeatureKey, TapSpec


def check_specs(specs: Mapping[FeatureKey, TapSpec]) -> dict[FeatureKey, TapSpec]:
    """A copy of the specifications a head is built for; raises ValueError when there are none."""
    if not specs:
        raise ValueError("a head needs at least one feature; give an extractor's specs")
    return dict(specs)


def single_key(specs: Mapping[FeatureKey, TapSpec]) -> FeatureKey:
    """The one key of a probe; raises ValueError when there are more."""
    if len(specs) != 1:
        raise ValueError(f"this head reads exactly one feature, got {list(specs)}; choose one tap and one timestep")
    return next(iter(specs))


def select(features: Mapping[FeatureKey, Tensor], specs: Mapping[FeatureKey, TapSpec]) -> dict[FeatureKey, Tensor]:
    """The features a head was built for, in its order; others may be there and are left alone.

    Raises:
        ValueError: a feature is missing or has another shape than (B, C, h, w) with its tap's channels.
    """
    missing = [key for key in specs if key not in features]
    if missing:
        raise ValueError(f"features lack {missing}; there are {list(features)}")
    batch = next(features[key].shape[0] for key in specs)
    for key, spec in specs.items():
        shape = tuple(features[key].shape)
        if len(shape) != 4 or shape[:2] != (batch, spec.channels):
            raise ValueError(f"the feature {key} must have shape ({batch}, {spec.channels}, h, w), got {shape}")
    return {key: features[key] for key in specs}
