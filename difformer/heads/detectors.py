"""torchvision's detectors without their backbone, their transform and their use of the global random generator."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from difformer._optional import require

DetectorName = Literal["faster_rcnn", "mask_rcnn", "fcos", "retinanet"]

# What torchvision makes the sizes of anchors, as a multiple of the stride of their level.
_ANCHOR_SCALES: Mapping[str, float] = {"faster_rcnn": 8, "mask_rcnn": 8, "fcos": 1, "retinanet": 4}
_RATIOS = (0.5, 1.0, 2.0)

# In pixels; torchvision rounds the sides of smaller anchors to 0.
LEAST_ANCHOR = 2


class GivenLevels(nn.Module):
    """Stands where a detector has its backbone, and gives the `levels` it was handed.

    Args:
        width: channels of each level.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.levels: OrderedDict[str, Tensor] = OrderedDict()

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Args: images, of no interest. Returns the levels."""
        return self.levels


class AsTheyAre(nn.Module):
    """Stands where a detector has its transform, which would resize and normalise images; they are only their sizes."""

    def forward(self, images: Sequence[Tensor], targets: Any) -> tuple[Any, Any]:
        """Args: images, (3, H, W) each, all of one size. Returns them as torchvision's `ImageList`, and the targets."""
        image_list = require("torchvision.models.detection.image_list", "detection", install="torchvision").ImageList
        height, width = images[0].shape[1:]
        together = images[0].expand(len(images), 3, height, width)
        return image_list(together, [(height, width)] * len(images)), targets

    def postprocess(self, result: Any, image_shapes: Any, original_sizes: Any) -> Any:
        """The result, which is in pixels of the images already."""
        return result


class CentredAnchors(nn.Module):
    """torchvision's anchors, centred on the cells: those of cell j of a level with stride s at (j + 0.5) s, not at j s.

    Args:
        generator: torchvision's `AnchorGenerator`, which says their sizes.
        strides: of all levels. torchvision takes for a stride how many times the image is larger than the map, which is
            less where the image does not divide evenly.
    """

    def __init__(self, generator: Any, strides: Sequence[int]) -> None:
        super().__init__()
        self.generator, self.strides = generator, tuple(strides)

    def forward(self, images: Any, levels: Sequence[Tensor]) -> list[Tensor]:
        """Args: images, torchvision's `ImageList`; levels, (B, C, h, w) each. Returns the anchors (A, 4) of each
        image, level by level."""
        self.generator.set_cell_anchors(levels[0].dtype, levels[0].device)
        sizes, steps = [level.shape[2:] for level in levels], [(stride, stride) for stride in self.strides]
        corners = self.generator.grid_anchors(sizes, steps)
        anchors = torch.cat([one + stride / 2 for one, stride in zip(corners, self.strides, strict=True)])
        return [anchors] * len(images.image_sizes)


class MaskPool(nn.Module):
    """torchvision's pooling of regions for masks; in training, the boxes it was given are then half a pixel further to
    the left and up.

    From these boxes torchvision reads the targets of the masks next, and takes the centre of pixel j for j.

    Args:
        pool: torchvision's `MultiScaleRoIAlign`.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, levels: Mapping[str, Tensor], boxes: list[Tensor], sizes: Any) -> Tensor:
        """Args: levels, by name; boxes, (n, 4) an image; sizes, of the images. Returns (all n, C, side, side)."""
        pooled: Tensor = self.pool(levels, boxes, sizes)
        if self.training:
            boxes[:] = [one - 0.5 for one in boxes]
        return pooled


class SeededSampler:
    """torchvision's `BalancedPositiveNegativeSampler` that draws from a generator of its own, on the CPU, so that the
    same anchors and regions are drawn on every device.

    Args:
        sampler: torchvision's, which says how many and in what proportion.

    Attributes:
        generator: to be set before each use.
    """

    def __init__(self, sampler: Any) -> None:
        self.number: int = sampler.batch_size_per_image
        self.positive = int(sampler.batch_size_per_image * sampler.positive_fraction)
        self.generator: torch.Generator | None = None

    def __call__(self, labels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Args: labels, (N,) an image: at least 1, 0 for background, -1 ignored. Returns masks (N,) of those drawn,
        positive ones and background."""
        positives, negatives = [], []
        for one in labels:
            positives.append(self._drawn(one >= 1, self.positive))
            negatives.append(self._drawn(one == 0, self.number - int(positives[-1].sum())))
        return positives, negatives

    def _drawn(self, candidates: Tensor, number: int) -> Tensor:
        assert self.generator is not None, "a generator must be set"
        places = candidates.nonzero()[:, 0]
        order = torch.randperm(len(places), generator=self.generator, device="cpu")[:number]
        mask = torch.zeros_like(candidates, dtype=torch.uint8)
        mask[places[order.to(places.device)]] = 1
        return mask


def one_stage(name: DetectorName) -> bool:
    """Whether a detector has no regions of interest: FCOS and RetinaNet."""
    return name in ("fcos", "retinanet")


def build_fpn(name: DetectorName, channels: Sequence[int], width: int) -> nn.Module:
    """torchvision's feature pyramid network for a detector, with the coarser levels it adds: two for FCOS and
    RetinaNet (strided convolutions), else one (every second cell)."""
    ops = require("torchvision.ops.feature_pyramid_network", "detection", install="torchvision")
    extra = ops.LastLevelP6P7(width, width) if one_stage(name) else ops.LastLevelMaxPool()
    network: nn.Module = ops.FeaturePyramidNetwork(list(channels), width, extra_blocks=extra)
    return network


def build_detector(
    name: DetectorName,
    strides: Sequence[int],
    width: int,
    num_classes: int,
    *,
    anchor_scale: float | None,
    score_threshold: float,
    nms_threshold: float | None,
    max_detections: int,
) -> nn.Module:
    """One of torchvision's detectors, to be handed levels through its `backbone.levels`.

    Args:
        name: which.
        strides: of the levels before the feature pyramid network adds coarser ones.
        width: channels of each level.
        num_classes: without background.
        anchor_scale: least size of anchors over their level's stride; torchvision's when None.
        score_threshold, nms_threshold, max_detections: what is kept; torchvision's own threshold when None.
    """
    library = require("torchvision.models.detection", "detection", install="torchvision")
    strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(2 if one_stage(name) else 1)))
    anchors = _anchors(name, strides, anchor_scale)
    build: Callable[..., nn.Module]
    if one_stage(name):
        build = library.FCOS if name == "fcos" else library.RetinaNet
        nms = {} if nms_threshold is None else {"nms_thresh": nms_threshold}
        detector = build(
            GivenLevels(width), num_classes, anchor_generator=anchors, score_thresh=score_threshold,
            detections_per_img=max_detections, **nms,
        )  # fmt: skip
    else:
        align = require("torchvision.ops", "detection", install="torchvision").MultiScaleRoIAlign
        names = [str(i) for i in range(len(strides) - 1)]
        build = library.FasterRCNN if name == "faster_rcnn" else library.MaskRCNN
        nms = {} if nms_threshold is None else {"box_nms_thresh": nms_threshold}
        masks = {"mask_roi_pool": align(names, 14, 2)} if name == "mask_rcnn" else {}
        # Class 0 is the background.
        detector = build(
            GivenLevels(width), num_classes + 1, rpn_anchor_generator=anchors, box_roi_pool=align(names, 7, 2),
            box_score_thresh=score_threshold, box_detections_per_img=max_detections, **nms, **masks,
        )  # fmt: skip
    # Only torchvision's own classes may be given to its constructors.
    parent: Any = detector if one_stage(name) else detector.rpn
    parent.anchor_generator = CentredAnchors(anchors, strides)
    if name == "mask_rcnn":
        heads: Any = detector.roi_heads
        heads.mask_roi_pool = MaskPool(heads.mask_roi_pool)
    detector.transform = AsTheyAre()
    # FCOS and RetinaNet learn from all places.
    for part in (module for module in detector.modules() if hasattr(module, "fg_bg_sampler")):
        part.fg_bg_sampler = SeededSampler(part.fg_bg_sampler)  # type: ignore[assignment]
    return detector


def _anchors(name: DetectorName, strides: Sequence[int], scale: float | None) -> Any:
    """torchvision's anchors.

    Args:
        name: of the detector.
        strides: of all levels, those that the FPN adds included.
        scale: least size over the stride; torchvision's when None.
    """
    library = require("torchvision.models.detection.anchor_utils", "detection", install="torchvision")
    octave = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)] if name == "retinanet" else [1.0]
    least = _ANCHOR_SCALES[name] if scale is None else scale
    sizes = tuple(tuple(int(least * stride * part) for part in octave) for stride in strides)
    return library.AnchorGenerator(sizes, ((1.0,) if name == "fcos" else _RATIOS,) * len(sizes))
