"""Windows that slide over an image larger than a network was trained on, and the mean of what is found in them.

Windows of one image overlap, so noise must be drawn once for the whole (padded) image and cropped with it: what a
window is given must not depend on the window.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from difformer.config import Size, as_positive_integer, as_size, check_range, sides
from difformer.maps import resize_logits


@dataclass(frozen=True)
class Windows:
    """Where windows of one size lie, which together cover an image.

    Attributes:
        height, width: of the image in pixels.
        size: (h, w) of every window.
        corners: (top, left) of each, in rows from the top, from the left in each. They lie in the padded image.
    """

    height: int
    width: int
    size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]

    @property
    def padded(self) -> tuple[int, int]:
        """(h, w) of the image with what is added where it is smaller than a window, below and on the right."""
        return max(self.height, self.size[0]), max(self.width, self.size[1])

    def pad(self, image: Tensor) -> Tensor:
        """Mirrors the image at its lower and right border, as often as it takes, where it is smaller than a window.

        Args:
            image: (…, H, W).

        Returns:
            (…, h, w) of the `padded` size; the image itself where it is large enough.

        Raises:
            ValueError: the image has another size.
        """
        if tuple(image.shape[-2:]) != (self.height, self.width):
            raise ValueError(
                f"the image must be of {self.height} × {self.width} pixels (h × w), as its windows are, got "
                f"{tuple(image.shape)}"
            )
        for axis, (length, wanted) in enumerate(zip((self.height, self.width), self.padded, strict=True), -2):
            if wanted > length:
                # The border itself is not repeated: 0 1 2 1 0 1 …
                period = max(1, 2 * (length - 1))
                place = torch.arange(wanted, device=image.device) % period
                image = image.index_select(axis, torch.minimum(place, period - place).clamp(max=length - 1))
        return image

    def crop(self, padded: Tensor, number: int) -> Tensor:
        """What a window shows.

        Args:
            padded: (…, h, w) of the `padded` size: an image, or its noise.
            number: of the window.

        Raises:
            ValueError: another size.
        """
        if tuple(padded.shape[-2:]) != self.padded:
            raise ValueError(f"what is cropped must be of the padded size {self.padded}, got {tuple(padded.shape)}")
        (top, left), (h, w) = self.corners[number], self.size
        return padded[..., top : top + h, left : left + w]


def windows_of(height: int, width: int, window: Size, *, stride: float = 2 / 3) -> Windows:
    """The fewest windows, at most a stride apart, that cover every pixel; the last ones end with the image, so that
    all have one size (as in mmsegmentation's slide inference).

    Args:
        height, width: of the image, H and W.
        window: (h, w) or the side of a square.
        stride: from one window to the next as a share of its side, in (0, 1]; rounded down to pixels, at least one.

    Raises:
        ValueError: a size that is not positive, or another stride.
    """
    check_range("stride", stride, lambda share: 0 < share <= 1, "above 0 and at most 1")
    lengths = (as_positive_integer("height", height), as_positive_integer("width", width))
    size = sides(as_size("window", window))
    tops, lefts = (_starts(length, side, stride) for length, side in zip(lengths, size, strict=True))
    return Windows(*lengths, size, tuple((top, left) for top in tops for left in lefts))


def average_windows(windows: Windows, logits: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """The mean of the windows' logits at every pixel of the image, strip by strip from the top.

    A strip is given when no later window reaches it, and windows are asked for one by one, so that only one row of
    windows is held. `torch.cat([strip for _, strip in …], dim=1)` is the whole map, where that fits.

    The most memory that is taken at once is that of the row, K · h · W numbers, and of two strips of at most as many:
    the one that is made, and the one before, which a loop still holds; `del strip` at the end of the loop frees it. Of
    150 classes, windows of 512 and an image 4000 wide, in float32 and with the default stride, these are 1.2, 1.2 (the
    last strip; others have 0.8) and 0.8 GB: 3.3 GB, or 2.5 GB with that line.

    Args:
        windows: of the image.
        logits: (K, h, w) of each window in the order of `windows.corners`, of any floating-point type; a map of
            another resolution is enlarged to the window.

    Yields:
        The row of the image that a strip begins at, and the strip: (K, rows, W), float32 or float64.

    Raises:
        ValueError: a map of another shape than the first, or more or fewer maps than windows.
    """
    (h, w), (_, across) = windows.size, windows.padded
    tops, lefts = (sorted(set(starts)) for starts in zip(*windows.corners, strict=True))
    maps, count, wanted = iter(logits), 0, len(windows.corners)
    total = hits = torch.zeros(0)
    for top, following in zip(tops, [*tops[1:], tops[-1] + h], strict=True):
        for left in lefts:
            one = next(maps, None)
            if one is None or one.ndim != 3 or len(one) != (len(total) if count else len(one)):
                got = "none" if one is None else tuple(one.shape)
                raise ValueError(f"there must be {wanted} maps (K, h, w) with one K, got {got} for window {count}")
            found = resize_logits(one[None], h, w)[0]
            if not count:
                total, hits = found.new_zeros(len(found), h, across), found.new_zeros(h, across)
            total[:, :, left : left + w] += found
            hits[:, left : left + w] += 1
            count += 1
        # What no later window reaches is given away, and the rest moves up.
        done = following - top
        rows = min(done, windows.height - top)
        # A copy of the hits, which a gradient needs after they have moved.
        yield top, total[:, :rows, : windows.width] / hits[:rows, : windows.width].clone()
        for x in (total, hits):
            # In blocks that do not overlap with where they go, so that none is copied.
            for row in range(done, h, done):
                x[..., row - done : min(row, h - done), :] = x[..., row : row + done, :]
            x[..., h - done :, :] = 0
    if next(maps, None) is not None:
        raise ValueError(f"there must be {wanted} maps, one a window, got more")


def _starts(length: int, side: int, stride: float) -> list[int]:
    step, last = max(1, int(side * stride)), max(0, length - side)
    return [*range(0, last, step), last]
