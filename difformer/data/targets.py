"""What is to be predicted of an image that has more than a class: classes of pixels, boxes of objects, or points."""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer._optional import require
from difformer.maps import IGNORE, resize_logits

# Pixels by which a box may reach over the edge of its image, which rounding explains; it is then clipped.
_ROUNDING = 1.0
# Pixels that a box must be wide and high, so that rounding in float32 leaves something of it when it is moved.
_LEAST_SIDE = 1e-2


@dataclass(frozen=True, eq=False)
class Mask:
    """The class of every pixel.

    Attributes:
        labels: (H, W) uint8, in [0, number of classes), or 255 where a pixel is ignored. Batches have them as int64.

    Raises:
        ValueError: another shape or type.
    """

    labels: Tensor

    def __post_init__(self) -> None:
        _check("labels of a mask", self.labels, (None, None), torch.uint8)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.labels.shape[0], self.labels.shape[1]

    def resize(self, height: int, width: int) -> "Mask":
        """Scaled to a size; each pixel takes the label of the nearest one, by their centres."""
        return Mask(_nearest(self.labels[None], height, width)[0])

    def crop(self, top: int, left: int, height: int, width: int) -> "Mask":
        """A part that lies inside."""
        return Mask(self.labels[top : top + height, left : left + width])

    def pad(self, height: int, width: int) -> "Mask":
        """Enlarged to a size at the lower and right edge, by pixels that are ignored."""
        here = self.size
        return Mask(F.pad(self.labels, (0, width - here[1], 0, height - here[0]), value=IGNORE))

    def flip(self) -> "Mask":
        """Mirrored from left to right."""
        return Mask(self.labels.flip(1))


@dataclass(frozen=True, eq=False)
class Boxes:
    """The objects of an image; there may be none.

    The first pixel reaches from 0 to 1: a box around it alone is 0, 0, 1, 1.

    Attributes:
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels of the image, x1 < x2 and y1 < y2.
        labels: (n,) int64 in [0, number of classes).
        crowd: (n,) bool, where a box holds many objects, or one that shall not count: neither found nor missed.
        size: (H, W) of the image.
        areas: (n,) float32 of the objects in pixels, by which COCO's metrics tell small ones from large ones; of the
            boxes when left out.
        masks: (n, H, W) bool, where objects have masks.

    Raises:
        ValueError: shapes or types that do not fit, or a box that is none (`box_problem`).
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    size: tuple[int, int]
    areas: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        _check("boxes", self.boxes, (None, 4), torch.float32)
        n = len(self.boxes)
        _check("labels of boxes", self.labels, (n,), torch.int64)
        _check("crowd of boxes", self.crowd, (n,), torch.bool)
        if self.areas is None:
            object.__setattr__(self, "areas", _areas(self.boxes))
        else:
            _check("areas of boxes", self.areas, (n,), torch.float32)
        if self.masks is not None:
            _check("masks of boxes", self.masks, (n, *self.size), torch.bool)
        for box in self.boxes.tolist():
            if problem := box_problem(box, self.size):
                raise ValueError(f"the box {box} {problem}")
        object.__setattr__(self, "boxes", _cut(self.boxes, self.size))

    def _moved(self, boxes: Tensor, size: tuple[int, int], areas: Tensor | None, masks: Tensor | None) -> "Boxes":
        """The same objects elsewhere, cut at the edges.

        They are not checked again: what rounding leaves of a small box is no mistake of a file.
        """
        found = copy(self)
        for name, value in {"boxes": _cut(boxes, size), "size": size, "areas": areas, "masks": masks}.items():
            object.__setattr__(found, name, value)
        return found

    def resize(self, height: int, width: int) -> "Boxes":
        """Scaled with an image to a size."""
        down, across = height / self.size[0], width / self.size[1]
        scale = self.boxes.new_tensor([across, down, across, down])
        areas = None if self.areas is None else self.areas * (down * across)
        masks = None if self.masks is None else _nearest(self.masks, height, width)
        return self._moved(self.boxes * scale, (height, width), areas, masks)

    def crop(self, top: int, left: int, height: int, width: int) -> "Boxes":
        """A part that lies inside. Boxes are cut at its edges, and objects of which not one pixel's width or height
        (or nothing of their mask) is left are left out. Areas shrink as the boxes do, or are those of the masks.
        """
        boxes = _cut(self.boxes - self.boxes.new_tensor([left, top, left, top]), (height, width))
        kept = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= 1
        masks = None if self.masks is None else self.masks[:, top : top + height, left : left + width]
        areas = None if self.areas is None else self.areas * (_areas(boxes) / _areas(self.boxes))
        if masks is not None:
            areas = masks.sum((1, 2)).float()
            kept &= areas > 0
        return Boxes(
            boxes[kept],
            self.labels[kept],
            self.crowd[kept],
            (height, width),
            None if areas is None else areas[kept],
            None if masks is None else masks[kept],
        )

    def pad(self, height: int, width: int) -> "Boxes":
        """The same in an image that is enlarged to a size at the lower and right edge."""
        room = (0, width - self.size[1], 0, height - self.size[0])
        masks = None if self.masks is None else F.pad(self.masks, room)
        return self._moved(self.boxes, (height, width), self.areas, masks)

    def flip(self) -> "Boxes":
        """Mirrored from left to right."""
        x1, y1, x2, y2 = self.boxes.unbind(1)
        boxes = torch.stack([self.size[1] - x2, y1, self.size[1] - x1, y2], 1)
        return self._moved(boxes, self.size, self.areas, None if self.masks is None else self.masks.flip(2))


@dataclass(frozen=True, eq=False)
class Points:
    """Named points of an image, such as the corners of eyes.

    x = 0.5 is the centre of the first pixel, and x = W the right edge. Files that count pixels, whose first pixel
    is 0, as those of COCO and WFLW are taken to, hold 0.5 less.

    Attributes:
        points: (K, 2) float32 x, y in pixels of the image; 0 where a point is missing.
        visible: (K,) bool, whether a point is known and was not cropped off. Others count neither in a loss nor in a
            metric.
        size: (H, W) of the image.
        swap: the number of the point that each one is in a mirrored image, where that is known: right of left.
        box: x1, y1, x2, y2 of the object that has the points, where there is one.

    Raises:
        ValueError: shapes or types that do not fit, visible points that are not finite, or a swap that is no
            involution.
    """

    points: Tensor
    visible: Tensor
    size: tuple[int, int]
    swap: tuple[int, ...] | None = None
    box: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check("points", self.points, (None, 2), torch.float32)
        count = len(self.points)
        _check("visible", self.visible, (count,), torch.bool)
        if not self.points[self.visible].isfinite().all():
            raise ValueError(f"visible points must be finite, got {self.points.tolist()}")
        if self.box is not None and len(self.box) != 4:
            raise ValueError(f"the box of points must be x1, y1, x2, y2, got {self.box}")
        swap = self.swap
        if swap is not None and (
            sorted(swap) != list(range(count)) or any(swap[there] != here for here, there in enumerate(swap))
        ):
            raise ValueError(
                f"swap must say of each of {count} points which one it is in a mirrored image, where what changes "
                f"places twice is as before; got {swap}"
            )

    def resize(self, height: int, width: int) -> "Points":
        """Scaled with an image to a size."""
        scale = self.points.new_tensor([width / self.size[1], height / self.size[0]])
        box = None if self.box is None else tuple(s * b for s, b in zip([*scale.tolist()] * 2, self.box, strict=True))
        return replace(self, points=self.points * scale, size=(height, width), box=box)

    def crop(self, top: int, left: int, height: int, width: int) -> "Points":
        """A part, which may reach over the edges. Points outside are not visible."""
        points = self.points - self.points.new_tensor([left, top])
        inside = ((points >= 0) & (points < points.new_tensor([width, height]))).all(1)
        box = None if self.box is None else tuple(b - o for b, o in zip(self.box, (left, top) * 2, strict=True))
        return replace(self, points=points, visible=self.visible & inside, size=(height, width), box=box)

    def pad(self, height: int, width: int) -> "Points":
        """The same in an image that is enlarged to a size at the lower and right edge."""
        return replace(self, size=(height, width))

    def flip(self) -> "Points":
        """Mirrored from left to right; left points become right ones.

        Raises:
            ValueError: it is not known which.
        """
        if self.swap is None:
            raise ValueError("mirroring points needs to know which ones change places; set flip_pairs")
        width, swap = self.size[1], list(self.swap)
        mirrored = torch.stack([width - self.points[:, 0], self.points[:, 1]], 1)
        box = None if self.box is None else (width - self.box[2], self.box[1], width - self.box[0], self.box[3])
        return replace(self, points=mirrored[swap], visible=self.visible[swap], box=box)


Target = Mask | Boxes | Points
T = TypeVar("T", Mask, Boxes, Points)


class Annotations(Protocol):
    """The targets of a split's images, read when they are asked for. Picklable, since workers get a copy."""

    @property
    def kind(self) -> type[Target]:
        """`Mask`, `Boxes` or `Points`, without reading one."""

    @property
    def digest(self) -> str:
        """What tells those from others that are in memory; of targets that lie in files, those count."""

    def __len__(self) -> int: ...

    def __call__(self, index: int, size: tuple[int, int] | None = None) -> Target:
        """The target of an image, upright and at its own size.

        Args:
            index: of the image.
            size: (H, W) of the image, upright, where it is known. That of the target is compared with it in any case,
                but what is decoded from a few bytes should be refused before: a size that is made up fills the memory.

        Raises:
            ImageError: it lies in a file that cannot be read, or says nothing.
            ValueError: it is not as it should be; the message names the image and the value.
        """

    def files(self, index: int) -> tuple[str, ...]:
        """Paths of the files that it has to itself; none where targets are in memory."""


def as_example(target: Target, size: tuple[int, int], names: int) -> Target:
    """An example of a target for an image of a size (H, W), with as many points as there are names."""
    if isinstance(target, Points):
        points, visible = target.points[:1].expand(names, 2), target.visible[:1].expand(names)
        target = replace(target, points=points, visible=visible, swap=None)
    return target.resize(*size)


def moved(target: T, device: torch.device | str) -> T:
    """The same target with its tensors on a device."""
    found = copy(target)
    for name, value in vars(target).items():
        if isinstance(value, Tensor):
            object.__setattr__(found, name, value.to(device))
    return found


@dataclass(frozen=True, eq=False)
class Origin:
    """Where an input of evaluation comes from, and how predictions go back to it.

    Attributes:
        target: of the image at its own size, as it is scored.
        size: (H, W) of the part of the image that the input shows, which begins at `start`.
        shown: (h, w) of that part in the input, at its upper left; what is beyond is padding.
        start: (top, left) of that part in the image.
    """

    target: Target
    size: tuple[int, int]
    shown: tuple[int, int]
    start: tuple[int, int] = (0, 0)

    def points(self, points: Tensor) -> Tensor:
        """Places in pixels of the image.

        Args:
            points: (…, 2) x, y in pixels of the input.
        """
        (height, width), (top, left) = self.size, self.start
        scale = points.new_tensor([width / self.shown[1], height / self.shown[0]])
        return points * scale + points.new_tensor([left, top])

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes in pixels of the image, cut at its edges.

        Args:
            boxes: (n, 4) x1, y1, x2, y2 in pixels of the input.
        """
        return _cut(self.points(boxes.reshape(-1, 2)).reshape(-1, 4), self.target.size)

    def maps(self, maps: Tensor, canvas: tuple[int, int]) -> Tensor:
        """Logits at the image's size, bilinear: by `resize_logits`, as they are in losses and windows.

        Padding is cut off at the input's size, as in mmsegmentation, so that only maps with padding are resized twice.

        Args:
            maps: (K, h, w) of the input, at any resolution and of any floating-point type.
            canvas: (h, w) of the input in pixels, with its padding.

        Returns:
            (K, H, W) float32 or float64.
        """
        if canvas != self.shown:
            maps = resize_logits(maps[None], *canvas)[0, :, : self.shown[0], : self.shown[1]]
        return resize_logits(maps[None], *self.size)[0]


def box_problem(box: list[float], size: tuple[int, int]) -> str | None:
    """What is wrong with x1, y1, x2, y2, in float32, in an image of a size (H, W); None when nothing is."""
    x1, y1, x2, y2 = torch.tensor(box, dtype=torch.float32).tolist()
    if not all(abs(side) < float("inf") for side in (x1, y1, x2, y2)):
        return "is not finite"
    if x2 <= x1 or y2 <= y1:
        return "has no width or height"
    height, width = size
    if min(x1, y1) < -_ROUNDING or x2 > width + _ROUNDING or y2 > height + _ROUNDING:
        return f"reaches out of its image of {height}×{width}"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return "lies outside its image"
    sides = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
    return f"is less than {_LEAST_SIDE:g} pixels wide or high" if min(sides) < _LEAST_SIDE else None


def _nearest(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (n, H, W) at another size; each pixel is that which is nearest to its centre."""
    functional = require("torchvision.transforms.v2.functional", "resizing masks", install="torchvision")
    nearest = functional.InterpolationMode.NEAREST_EXACT
    found: Tensor = functional.resize(maps.byte(), [height, width], interpolation=nearest)
    return found.to(maps.dtype)


def _cut(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) cut at the edges of an image (H, W)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def _areas(boxes: Tensor) -> Tensor:
    """(n,) of boxes (n, 4)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


def _check(name: str, value: Any, shape: tuple[int | None, ...], dtype: torch.dtype) -> None:
    """Raises ValueError when a value is no tensor of a shape, None being any side, and of a type."""
    fits = isinstance(value, Tensor) and value.ndim == len(shape) and value.dtype == dtype
    if not fits or any(side not in (None, there) for side, there in zip(shape, value.shape, strict=True)):
        found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} must be a tensor {shape} {dtype} (None: any side), got {found}")
