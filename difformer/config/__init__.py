"""Configurations: architectures and recipes, read strictly."""

from difformer.config.sizes import Size, as_json_size, as_size, shown, sides, size_of
from difformer.config.values import (
    NORM_GROUPS,
    UNetConfig,
    as_call,
    as_integer,
    as_positive_integer,
    as_positive_integers,
    as_positive_number,
    as_rate,
    as_switch,
    as_tuple,
    check_choice,
    check_different,
    check_pools,
    check_range,
    from_mapping,
)

__all__ = [
    "NORM_GROUPS",
    "Size",
    "UNetConfig",
    "as_call",
    "as_integer",
    "as_json_size",
    "as_positive_integer",
    "as_positive_integers",
    "as_positive_number",
    "as_rate",
    "as_size",
    "as_switch",
    "as_tuple",
    "check_choice",
    "check_different",
    "check_pools",
    "check_range",
    "from_mapping",
    "shown",
    "sides",
    "size_of",
]
