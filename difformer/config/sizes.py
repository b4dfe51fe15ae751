"""Sizes of images and maps: one number for a square, or height and width."""

from typing import Any

from difformer.config.values import as_integer

# A square is always one number, so that it is written in the same way however it was given.
Size = int | tuple[int, int]


def as_size(name: str, value: Any) -> Size:
    """A size in its one form: a plain int for a square, else (h, w).

    Args:
        name: what errors call it.
        value: a positive integer, or a list or tuple of height and width.

    Raises:
        ValueError: it is something else.
    """
    try:
        given = [as_integer(name, side) for side in (value if isinstance(value, list | tuple) else [value] * 2)]
        height, width = given
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(
            f"{name} must be an integer of at least 1, or [h, w], two of them, height before width; got {value!r}"
        )
    return size_of(height, width)


def size_of(height: int, width: int) -> Size:
    """The size of this height and width."""
    return height if height == width else (height, width)


def sides(size: Size) -> tuple[int, int]:
    """Height and width of a size."""
    return size if isinstance(size, tuple) else (size, size)


def as_json_size(size: Size) -> int | list[int]:
    """A size in JSON's types, which have no tuples."""
    return size if isinstance(size, int) else list(size)


def shown(size: Size) -> str:
    """A size as text: 64, or 32×48."""
    return "×".join(map(str, size)) if isinstance(size, tuple) else str(size)
