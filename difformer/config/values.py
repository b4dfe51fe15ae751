"""Configuration as frozen dataclasses, and their strict reading from mappings."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from difformer.registry import did_you_mean

T = TypeVar("T")

# GroupNorm's groups in every ADM network; widths must be multiples of it.
NORM_GROUPS = 32
# Far above any real network, and low enough for exact widths.
_MOST = 1_000_000


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of a guided-diffusion (ADM) U-Net, Dhariwal & Nichol 2021.

    Values are kept as plain Python numbers, in one form for one network: see the attributes.

    Attributes:
        image_size: side in pixels of the images it was trained on.
        model_channels: base width.
        channel_mult: width of each level as a multiple of `model_channels`, finest level first.
        num_res_blocks: residual blocks a level in the encoder (the decoder has one more).
        attention_resolutions: feature-map sides in pixels that get self-attention, as in OpenAI's own flags.
            Sizes below the coarsest level are allowed and have no effect, as there. Kept in descending order.
        in_channels: image channels.
        out_channels: 6 where the network also predicts a variance (learned sigma), else 3.
        num_heads: attention heads, where `num_head_channels` is None; else always 1.
        num_head_channels: channels a head; takes precedence over `num_heads`.
        use_scale_shift_norm: timestep embedding scales and shifts the normalised activations instead of being added.
        resblock_updown: residual blocks do the resampling.
        use_new_attention_order: split q, k, v before the heads.
        conv_resample: convolutions in the resampling layers, where `resblock_updown` is false.
        num_classes: classes of a class-conditional network, else None.
        dropout: dropout probability in training.

    Raises:
        ValueError: a value out of range, or widths that the norm groups or heads do not divide.
    """

    image_size: int
    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    in_channels: int = 3
    out_channels: int = 6
    num_heads: int = 1
    num_head_channels: int | None = None
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False
    conv_resample: bool = True
    num_classes: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention_resolutions"):
            self._set(name, _as_tuple(name, getattr(self, name)))
        self._check_types()
        self._set("attention_resolutions", tuple(sorted(set(self.attention_resolutions), reverse=True)))
        if self.num_head_channels is not None:
            self._set("num_heads", 1)
        self._check_sizes_and_widths()

    @property
    def downsampling(self) -> int:
        """Image sides must be a multiple of this."""
        return int(2 ** (len(self.channel_mult) - 1))

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Width of each level, finest first."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels (0 is the finest) with attention."""
        return tuple(level for level in range(len(self.channel_mult)) if self.attends(level))

    def heads(self, channels: int) -> int:
        """Attention heads at a given width."""
        return self.num_heads if self.num_head_channels is None else channels // self.num_head_channels

    def _check_types(self) -> None:
        for name in ("use_scale_shift_norm", "resblock_updown", "use_new_attention_order", "conv_resample"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        positive = ["image_size", "model_channels", "num_res_blocks", "in_channels", "out_channels", "num_heads"]
        positive += [name for name in ("num_head_channels", "num_classes") if getattr(self, name) is not None]
        for name in positive:
            number = as_positive_integer(name, getattr(self, name))
            if number > _MOST:
                # Python refuses to print numbers of thousands of digits.
                shown = number if number.bit_length() <= 64 else f"a number of {number.bit_length()} bits"
                raise ValueError(f"{name} must be at most {_MOST}, got {shown}")
            self._set(name, number)
        sizes = tuple(as_positive_integer("attention_resolutions", size) for size in self.attention_resolutions)
        self._set("attention_resolutions", sizes)
        multiples = []
        for value in self.channel_mult:
            if not 0 < _as_float(value) < _MOST:
                raise ValueError(f"channel_mult must hold positive numbers below {_MOST}, got {value!r}")
            multiples.append(int(value) if isinstance(value, Integral) else float(value))
        self._set("channel_mult", tuple(multiples))
        self._set("dropout", as_rate("dropout", self.dropout))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes_and_widths(self) -> None:
        if not self.channel_mult:
            raise ValueError("channel_mult must name at least one level")
        if self.image_size % self.downsampling:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {self.downsampling}, "
                f"the down-sampling of {len(self.channel_mult)} levels"
            )
        for size in self.attention_resolutions:
            ratio, rest = divmod(self.image_size, size)
            if rest or ratio & (ratio - 1):
                halvings = [self.image_size >> level for level in range(len(self.channel_mult))]
                raise ValueError(
                    f"attention_resolutions names {size}, but the feature maps of a {self.image_size}-pixel "
                    f"network have sides {halvings}"
                )
        for width in self.level_channels:
            if width <= 0 or width % NORM_GROUPS:
                raise ValueError(
                    f"every level's width must be a multiple of {NORM_GROUPS} (GroupNorm's groups); "
                    f"model_channels {self.model_channels} × channel_mult {self.channel_mult} gives {width}"
                )
        attending = [w for i, w in enumerate(self.level_channels) if self.attends(i)] + [self.level_channels[-1]]
        divisor = self.num_heads if self.num_head_channels is None else self.num_head_channels
        for width in attending:
            if width % divisor:
                name = "num_heads" if self.num_head_channels is None else "num_head_channels"
                raise ValueError(f"{name} {divisor} must divide the width {width} of the attention layers")

    def attends(self, level: int) -> bool:
        """Whether the residual blocks of a level (0 is the finest) are followed by attention."""
        return (self.image_size >> level) in self.attention_resolutions


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds a configuration dataclass from a mapping, strictly.

    Raises:
        ValueError: an unknown key (the message names the nearest known one), a missing one, or a bad value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} must be given as keys and values, got {type(values).__name__}")
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {key!r} for {cls.__name__}; {did_you_mean(str(key), known)}")
    try:
        return cls(**values)
    # RecursionError comes from printing a value that is nested too deeply.
    except (TypeError, RecursionError) as error:
        raise ValueError(f"cannot build {cls.__name__}: {error}") from error


def as_integer(name: str, value: Any) -> int:
    """A whole number of any integer type, numpy's and torch's included, as a plain int.

    Raises:
        ValueError: it is a truth value, a fraction (32.0 too), text or anything else.
    """
    # Truth values and their tensors count as integers to Python, and are never meant as such.
    if not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", "")):
        try:
            return operator.index(value)
        except (TypeError, RuntimeError):  # RuntimeError comes from tensors without a value
            pass
    raise ValueError(f"{name} must be an integer, got {value!r}")


def as_positive_integer(name: str, value: Any) -> int:
    """As `as_integer`, of at least 1.

    Raises:
        ValueError: it is not a positive integer.
    """
    try:
        number = as_integer(name, value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def as_positive_integers(name: str, value: Any) -> tuple[int, ...]:
    """A sequence of positive integers, of any integer type.

    Raises:
        ValueError: it is no sequence, or holds something else.
    """
    return tuple(as_positive_integer(f"every entry of {name}", entry) for entry in _as_tuple(name, value))


def as_positive_number(name: str, value: Any) -> float:
    """A finite number above 0 of any real type, as a plain float.

    Raises:
        ValueError: it is something else.
    """
    if 0 < (number := _as_float(value)) < math.inf:
        return number
    raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def as_rate(name: str, value: Any) -> float:
    """A probability of leaving something out: at least 0 and below 1, as a plain float.

    Raises:
        ValueError: it is something else.
    """
    if 0 <= (number := _as_float(value)) < 1:
        return number
    raise ValueError(f"{name} must be a number of at least 0 and below 1, got {value!r}")


def as_switch(name: str, value: Any) -> bool:
    """A truth value, numpy's and torch's included, as a plain bool.

    Raises:
        ValueError: it is something else, such as a number or text.
    """
    scalar = "bool" in str(getattr(value, "dtype", "")) and getattr(value, "ndim", None) == 0
    if not isinstance(value, bool) and not scalar:
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, known: tuple[Any, ...], *, optional: bool = False) -> None:
    """Raises ValueError when a value is not one of the known ones."""
    if value not in known and not (optional and value is None):
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """A list as a tuple; raises ValueError when it is anything else, such as a single text."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, got {value!r}")
    return tuple(value)


def as_names(name: str, value: Any) -> tuple[str, ...]:
    """One name or a list of them as a tuple, empty for None; raises ValueError when it is anything else."""
    names = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) and one for one in names):
        raise ValueError(f"{name} must be a name or a list of names, got {value!r}")
    return tuple(names)


def check_range(name: str, value: Any, fits: Callable[[float], bool], expected: str) -> None:
    """Raises ValueError when a value is no finite number, or does not fit."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not fits(float(value)):
        raise ValueError(f"{name} must be a number {expected}, got {value!r}")


def check_different(name: str, values: Sequence[int]) -> None:
    """Raises ValueError when there are no numbers, or a number appears twice."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must be one or more different numbers, got {list(values)}")


def check_pools(pools: Sequence[int]) -> None:
    """Raises ValueError unless they are different positive integers."""
    check_different("pools", pools)
    for pool in pools:
        as_positive_integer("pools", pool)


def _as_float(value: Any) -> float:
    """A real number as a plain float; not a number where it is something else, infinity where it is too large."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def as_call(arguments: Mapping[str, Any]) -> str:
    """Arguments as they are written in a call, `pool=2, batch_norm=False`, for an object's `repr` of one line."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name} must be a sequence of numbers, got {value!r}")
    return tuple(value)
