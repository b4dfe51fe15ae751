"""Names for the places features are read from: taps, feature keys and their mirror images. Pure data."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor
from torch.utils._pytree import MappingKey, register_pytree_node

from difformer.config import Size, as_integer, as_size, sides

# The diffusion-feature papers number the blocks of ADM-256, which has this many in its encoder.
LITERATURE_ENCODER_BLOCKS = 18


@dataclass(frozen=True)
class TapSpec:
    """What a backbone offers at one tap, known without running it.

    Attributes:
        name: `in00 …` for the encoder, `mid`, `out00 …` for the decoder.
        block: the literature's 1-based block number in network order.
        channels: channels of the feature map.
        size: of the feature map in pixels, for images of the backbone's own size unless stated otherwise: its side
            where it is square, else (h, w).
        flops: cost of one image from the input up to and including this block, in floating-point operations
            (a multiply-add counts as two; normalisation and activations are not counted).

    Raises:
        ValueError: a size that is neither.
    """

    name: str
    block: int
    channels: int
    size: Size
    flops: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size("size", self.size))

    @property
    def height(self) -> int:
        """Of the feature map in pixels."""
        return sides(self.size)[0]

    @property
    def width(self) -> int:
        """Of the feature map in pixels."""
        return sides(self.size)[1]


@dataclass(frozen=True)
class FeatureKey:
    """Where and when a feature was read.

    Attributes:
        tap: canonical tap name, such as `out04`.
        t: noise timestep.
        round: 0 for the plain pass, 1 for DifFeed's second pass.

    Raises:
        ValueError: a timestep or round that is no integer.
    """

    tap: str
    t: int
    round: int = 0

    def __post_init__(self) -> None:
        # Plain numbers, so that a key can be written down.
        for name in ("t", "round"):
            object.__setattr__(self, name, as_integer(name, getattr(self, name)))


class Features(dict[FeatureKey, Tensor]):
    """Feature maps (B, C, h, w) by where and when they were read; only a `FeatureKey` is a key."""

    def __missing__(self, key: object) -> Tensor:
        """Raises KeyError, which lists the keys that there are."""
        same = next((known for known in self if key in (known.tap, known.t)), next(iter(self), None))
        raise KeyError(
            f"no feature {key!r}: features are found by their FeatureKey, such as features[{same}]; "
            f"there are {', '.join(map(str, self)) or 'none'}"
        )


# Without this, torch takes a subclass of dict for one value, and `torch.func` finds no tensor in an extractor's result.
register_pytree_node(
    Features,
    lambda maps: (list(maps.values()), list(maps)),
    lambda values, keys: Features(zip(keys, values, strict=True)),
    flatten_with_keys_fn=lambda maps: ([(MappingKey(key), value) for key, value in maps.items()], list(maps)),
)


def tap_names(num_encoder_blocks: int) -> tuple[str, ...]:
    """The tap names of a U-Net in network order, from its number of encoder (= decoder) blocks."""
    encoder = tuple(f"in{i:02d}" for i in range(num_encoder_blocks))
    decoder = tuple(f"out{i:02d}" for i in range(num_encoder_blocks))
    return (*encoder, "mid", *decoder)


def resolve_tap(tap: str | int, names: Iterable[str]) -> str:
    """The canonical name of a tap given by name or by 1-based block number.

    Args:
        tap: `"out04"`, `24` or `"24"`.
        names: the backbone's tap names in network order (its `taps` mapping will do).

    Raises:
        ValueError: no such tap; the message lists those there are.
    """
    known = list(names)
    if isinstance(tap, str) and tap in known:
        return tap
    number = None
    if not isinstance(tap, str):
        with contextlib.suppress(ValueError):
            number = as_integer("a block number", tap)
    # Longer texts are no block's number, and Python refuses to convert the longest.
    elif tap.isascii() and tap.isdigit() and len(tap) < 10:
        number = int(tap)
    if number is not None and 1 <= number <= len(known):
        return known[number - 1]
    close = get_close_matches(tap, known, n=1) if isinstance(tap, str) else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"unknown tap {tap!r}; expected one of {', '.join(known)}, or a block number from 1 to {len(known)}.{hint}"
    )


def resolve_taps(request: Iterable[str | int], names: Iterable[str]) -> tuple[str, ...]:
    """The canonical names of several taps, in the order of the request.

    Raises:
        ValueError: the request is empty, is a bare string, or has an unknown or repeated tap.
    """
    known = list(names)
    if isinstance(request, str) or not isinstance(request, Iterable):
        raise ValueError(f"taps must be a sequence of tap names or block numbers; write [{request!r}] for one tap")
    taps = tuple(resolve_tap(tap, known) for tap in request)
    if not taps:
        raise ValueError(f"no tap was asked for; name at least one of {', '.join(known)}")
    repeated = sorted({tap for tap in taps if taps.count(tap) > 1})
    if repeated:
        raise ValueError(f"asked for {', '.join(repeated)} more than once; valid taps are {', '.join(known)}")
    return taps


def mirror(tap: str | int, names: Iterable[str] | None = None) -> str:
    """The tap on the other side of the bottleneck: the n-th from the end for the n-th from the start.

    In ADM-256, `out01` (block 21) mirrors `in16` (block 17); `mid` is its own mirror.

    Args:
        tap: a tap name or 1-based block number.
        names: the backbone's tap names in network order (its `taps` mapping will do); ADM-256's when left out.

    Raises:
        ValueError: no such tap.
    """
    known = list(tap_names(LITERATURE_ENCODER_BLOCKS) if names is None else names)
    return known[-1 - known.index(resolve_tap(tap, known))]


def corresponding_tap(tap: str | int, there: Iterable[str], here: Iterable[str]) -> str:
    """The tap of one network that lies as deep as a tap of another: in encoder, middle or decoder, in proportion.

    Block 24 of ADM-256, `out04` of 18, is `out01` in a decoder of 6, and `out02` in one of 8.

    Args:
        tap: a tap name or 1-based block number of the other network.
        there: the other network's tap names in network order.
        here: this one's.

    Raises:
        ValueError: no such tap there.
    """
    known, own = list(there), list(here)
    half, ours = len(known) // 2, len(own) // 2
    place = known.index(resolve_tap(tap, known))
    if place == half:
        return own[ours]
    depth = round((place % (half + 1)) * (ours - 1) / max(1, half - 1))
    # Networks of one or two blocks have no decoder.
    return own[min(max(0, depth) + (ours + 1 if place > half else 0), len(own) - 1)]
