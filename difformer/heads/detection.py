"""Boxes and masks of objects, by torchvision's detectors on the features of a diffusion model."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_positive_number, as_rate, check_choice
from difformer.heads._inputs import MapSides, describe, receive
from difformer.heads.detectors import (
    LEAST_ANCHOR,
    DetectorName,
    SeededSampler,
    build_detector,
    build_fpn,
    one_stage,
)
from difformer.heads.pyramid import Pyramid
from difformer.heads.registry import HEADS
from difformer.models.precision import finite
from difformer.taps import FeatureKey, TapSpec


class Objects(Protocol):
    """What is to be found in an image: a `difformer.data.Boxes`."""

    @property
    def boxes(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def crowd(self) -> Tensor: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def masks(self) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, the most certain first.

    Attributes:
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels of the image.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64 in [0, number of classes).
        masks: (n, 28, 28) float32 in [0, 1], each spread over its box, of Mask R-CNN; see `paste_masks`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


@HEADS.register("detection")
class DetectionHead(nn.Module):
    """torchvision's feature pyramid network and one of its detectors, on given features.

    Nothing is resized, and nothing is drawn from the global generator: each image's anchors and regions are drawn by
    its own seed. Each image has its own loss, in torchvision's arithmetic for a batch of one; so of FCOS, whose losses
    are divided by the number of positive places, an image with few objects counts as much as one with many. Boxes are
    computed in the precision of the weights, also in mixed precision.

    Cell j of a level with stride s has its centre at x = (j + 0.5) s, where its anchors are centred, too; torchvision
    centres them at j s. Masks are learned from targets at the pixels' centres. Of regions, only the features are as
    torchvision's `MultiScaleRoIAlign` pools them, which takes the centre of cell j for j s, too: they are read half a
    cell to the right of and below the region.

    Args:
        specs: the features it reads, a level of the pyramid for each size; see `Pyramid`.
        num_classes: of the objects, without background.
        detector: "faster_rcnn", "mask_rcnn" (boxes and masks), "fcos" or "retinanet".
        width: of all levels; for FCOS a multiple of 32. torchvision's initial weights are made for 256, and RetinaNet,
            which has no norms, learns slowly with far fewer.
        anchor_scale: least size of an anchor over the stride of its level: 8 for the R-CNNs and 4 for RetinaNet when
            None, as torchvision has it; smaller for small objects, down to anchors of 2 pixels. FCOS has none.
        score_threshold: detections that are less certain are left out.
        nms_threshold: of two boxes of a class that overlap more (IoU), the less certain is left out; 0.6 for FCOS and
            0.5 for the others when None.
        max_detections: at most this many detections an image.
        image_size: see `Pyramid`; it must be given.
        finest_stride: see `Pyramid`; 4 for the R-CNNs and 8 for the others when None. The FPN adds one coarser level
            to those of the features for the R-CNNs, and two for the others.

    Raises:
        ValueError: as `Pyramid`, no image size, strides that do not double from level to level, an unknown detector, a
            bad number, or anchors of less than 2 pixels.
        ImportError: torchvision is not there.
    """

    gives = "boxes"

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        detector: DetectorName = "faster_rcnn",
        width: int = 256,
        anchor_scale: float | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float | None = None,
        max_detections: int = 100,
        image_size: Size | None = None,
        finest_stride: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("detector", detector, get_args(DetectorName))
        if finest_stride is None:
            finest_stride = 8 if one_stage(detector) else 4
        self.pyramid = Pyramid(specs, image_size=image_size, finest_stride=finest_stride)
        self.specs = self.pyramid.specs
        self.map_sizes: dict[FeatureKey, Size | None] = dict.fromkeys(self.specs)
        self.learned_from: set[MapSides] = set()
        self.num_classes = as_positive_integer("num_classes", num_classes)
        self.strides = _checked_strides(self.pyramid)
        width = as_positive_integer("width", width)
        if detector == "fcos" and width % 32:
            raise ValueError(f"width must be a multiple of 32 for fcos, the groups of its norms, got {width}")
        if anchor_scale is not None:
            anchor_scale = as_positive_number("anchor_scale", anchor_scale)
            if detector == "fcos":
                raise ValueError(f"fcos has no anchors that anchor_scale {anchor_scale} could be of; leave it out")
            if anchor_scale * self.strides[0] < LEAST_ANCHOR:
                raise ValueError(
                    f"anchor_scale must be at least {LEAST_ANCHOR / self.strides[0]} for levels from stride "
                    f"{self.strides[0]} on, so that no anchor is smaller than {LEAST_ANCHOR} pixels, got {anchor_scale}"
                )
        if detector == "fcos" and self.strides[0] < LEAST_ANCHOR:
            raise ValueError(f"finest_stride must be at least {LEAST_ANCHOR} for fcos, got {self.strides[0]}")
        kept: dict[str, Any] = {
            "score_threshold": as_rate("score_threshold", score_threshold),
            "nms_threshold": None if nms_threshold is None else as_rate("nms_threshold", nms_threshold),
            "max_detections": as_positive_integer("max_detections", max_detections),
        }
        self.arguments: dict[str, Any] = {
            "detector": detector, "width": width, "anchor_scale": anchor_scale, **kept, **self.pyramid.arguments,
        }  # fmt: skip
        self.fpn = build_fpn(detector, self.pyramid.channels, width)
        self.detector: Any = build_detector(
            detector, self.strides, width, self.num_classes, anchor_scale=anchor_scale, **kept
        )
        parts = (module for module in self.detector.modules() if hasattr(module, "fg_bg_sampler"))
        self._samplers = [cast(SeededSampler, part.fg_bg_sampler) for part in parts]

    __repr__ = describe

    def forward(
        self,
        features: Mapping[FeatureKey, Tensor],
        targets: Sequence[Objects] | None = None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
    ) -> list[Detections] | dict[str, Tensor]:
        """What `predict` gives; with targets, what `losses` gives, so that a module that wraps this one sees both."""
        if targets is None:
            return self.predict(features)
        return self.losses(features, targets, () if seeds is None else seeds)

    @torch.no_grad()
    def predict(self, features: Mapping[FeatureKey, Tensor]) -> list[Detections]:
        """Finds objects.

        Args:
            features: (B, C, h, w) by key; more than it needs may be there.

        Returns:
            One `Detections` an image, which does not depend on the others.

        Raises:
            ValueError: see `receive` and `Pyramid`; or features that are not finite, in which nothing is found.
        """
        found = []
        levels, height, width = self._levels(features)
        for level in levels.values():
            finite("the detector's features", level)
        for one in self._run(levels, height, width):
            labels = one["labels"] if one_stage(self.arguments["detector"]) else one["labels"] - 1
            masks = one["masks"][:, 0] if "masks" in one else None
            found.append(Detections(one["boxes"], one["scores"], labels, masks))
        return found

    def losses(
        self,
        features: Mapping[FeatureKey, Tensor],
        targets: Sequence[Objects],
        seeds: Sequence[int] | Tensor,
    ) -> dict[str, Tensor]:
        """The losses of each image.

        Args:
            features: as for `predict`; gradients reach them.
            targets: of each image, of the size that the features are of; for Mask R-CNN with masks. Objects whose
                `crowd` is true are left out, as in torchvision's training.
            seeds: an integer of at least 0 for each image, such as a function of seed, step and image, from which its
                anchors and regions are drawn.

        Returns:
            (B,) float32 by torchvision's names, to be added up.

        Raises:
            ValueError: as `predict`, or targets or seeds that do not fit.
        """
        levels, height, width = self._levels(features)
        batch = len(levels["0"])
        numbers = [int(seed) for seed in seeds]
        if len(targets) != batch or len(numbers) != batch:
            raise ValueError(f"each of {batch} images needs a target and a seed, got {len(targets)} and {len(numbers)}")
        each = []
        for i, (target, seed) in enumerate(zip(targets, numbers, strict=True)):
            single = OrderedDict((name, level[i : i + 1]) for name, level in levels.items())
            checked = self._checked(target, height, width, i)
            each.append(self._run(single, height, width, [checked], torch.Generator().manual_seed(seed)))
        return {name: torch.stack([losses[name].float() for losses in each]) for name in each[0]}

    def pyramid_levels(self, features: Mapping[FeatureKey, Tensor]) -> dict[str, Tensor]:
        """The levels of the feature pyramid network, (B, width, h, w) by name, the finest first.

        Args and raises: as `predict`.
        """
        return dict(self._levels(features)[0])

    def _levels(self, features: Mapping[FeatureKey, Tensor]) -> tuple["OrderedDict[str, Tensor]", int, int]:
        """The levels of the FPN by name, in the dtype of the weights, and the height and width of the images."""
        dtype = next(self.fpn.parameters()).dtype
        levels = self.pyramid(receive(self, features), dtype)
        found = self.fpn(OrderedDict((str(i), level) for i, level in enumerate(levels)))
        height, width = (side * self.strides[0] for side in levels[0].shape[2:])
        return OrderedDict((name, level.to(dtype)) for name, level in found.items()), height, width

    def _run(
        self,
        levels: "OrderedDict[str, Tensor]",
        height: int,
        width: int,
        targets: list[dict[str, Tensor]] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The detector's own pass: its losses with targets, else what it finds."""
        images = levels["0"].new_zeros(1).expand(len(levels["0"]), 3, height, width)
        training = self.detector.training
        self.detector.train(targets is not None)
        self._hand_over(levels, generator)
        try:
            with torch.autocast(images.device.type, enabled=False):
                return self.detector(list(images), targets)
        finally:
            self.detector.train(training)
            self._hand_over(OrderedDict(), None)

    def _hand_over(self, levels: "OrderedDict[str, Tensor]", generator: torch.Generator | None) -> None:
        self.detector.backbone.levels = levels
        for sampler in self._samplers:
            sampler.generator = generator

    def check_target(self, target: Objects, name: str) -> None:
        """Raises ValueError where a target lacks what the detector learns from.

        Args:
            target: of an image.
            name: whose it is, for the message.
        """
        if self.arguments["detector"] == "mask_rcnn" and target.masks is None:
            raise ValueError(
                f"{name}: mask_rcnn learns from masks of objects, and there are none; set data.object_masks: true for "
                "data that has them, or choose another head.arguments.detector, such as faster_rcnn"
            )

    def _checked(self, target: Objects, height: int, width: int, image: int) -> dict[str, Tensor]:
        """A target as torchvision has it, on the head's device."""
        name = f"target {image}"
        self.check_target(target, name)
        if target.size != (height, width):
            raise ValueError(
                f"{name} is of an image of {target.size[0]}×{target.size[1]} (h × w), and the features are of one of "
                f"{height}×{width}"
            )
        device = next(self.fpn.parameters()).device
        boxes, labels, kept = target.boxes.to(device), target.labels.to(device), ~target.crowd.to(device)
        if not (boxes[:, 2:] > boxes[:, :2]).all() or not boxes.isfinite().all():
            raise ValueError(f"{name}: boxes must have x1 < x2 and y1 < y2, got {boxes.tolist()}")
        if len(labels) and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise ValueError(f"{name}: labels must lie in [0, {self.num_classes}), got {labels.tolist()}")
        # Class 0 of the R-CNNs is the background.
        first = 0 if one_stage(self.arguments["detector"]) else 1
        found = {"boxes": boxes[kept], "labels": labels[kept] + first}
        if self.arguments["detector"] == "mask_rcnn":
            assert target.masks is not None
            found["masks"] = target.masks.to(device)[kept].to(torch.uint8)
        return found


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Iterator[Tensor]:
    """Masks of whole images from those of boxes, one at a time, so that they need not all be in memory together.

    As in Detectron2, a mask is read at the centres of the image's pixels, bilinearly; at the border of the box, half a
    cell of the mask has the value of its outermost cell. torchvision's own function rounds boxes to whole pixels and
    makes them one pixel larger.

    Args:
        masks: (n, h, w) in [0, 1], each spread over its box.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the image, or of another size of it.
        size: (H, W) of the image in the same pixels.
        threshold: least value that belongs to the object.

    Yields:
        (H, W) bool for each mask, in their order; nothing outside its box.
    """
    for mask, box in zip(masks.float(), boxes.tolist(), strict=True):
        pasted = torch.zeros(size, dtype=torch.bool, device=mask.device)
        # The pixels whose centres lie in the box, and where in the box: from -1 to 1.
        (left, right), (top, bottom) = (
            (max(0, math.ceil(box[axis] - 0.5)), min(size[1 - axis], math.ceil(box[axis + 2] - 0.5))) for axis in (0, 1)
        )
        if left < right and top < bottom:
            x, y = (
                (2 * torch.arange(first, last, device=mask.device) + 1 - (box[axis] + box[axis + 2]))
                / (box[axis + 2] - box[axis])
                for axis, first, last in ((0, left, right), (1, top, bottom))
            )
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)
            values = F.grid_sample(mask[None, None], grid[None], padding_mode="border", align_corners=False)
            pasted[top:bottom, left:right] = values[0, 0] >= threshold
        yield pasted


def _checked_strides(pyramid: Pyramid) -> tuple[int, ...]:
    """The strides of a pyramid; raises ValueError where they are no powers of two that double, which the pooling of
    regions takes them for, and the coarser levels that the FPN adds."""
    strides = pyramid.strides
    if strides[0] & (strides[0] - 1) or any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(
            f"the strides of a detector's levels must be powers of two that double from level to level, got "
            f"{list(strides)}; choose taps of every resolution in between"
        )
    return strides
