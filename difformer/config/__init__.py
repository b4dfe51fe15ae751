"""Configurations: architectures and recipes, read strictly."""

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
    "UNetConfig",
    "as_call",
    "as_integer",
    "as_positive_integer",
    "as_positive_integers",
    "as_positive_number",
    "as_rate",
    "as_switch",
    "as_tuple",
    "check_choice",
    "check_different",
    "check_pools",
    "check_range",
    "from_mapping",
]
