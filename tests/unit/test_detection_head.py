"""Boxes and masks by torchvision's detectors: losses of each image, predictions, and what is drawn at random."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from example_dense_heads import COARSE, DETECTORS, FINE, MIDDLE, ONE, PYRAMID, SIZE, detection_head, features_for
from torch import nn
from torchvision.models import detection as torchvision_detection
from torchvision.models.detection import roi_heads
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, box_iou

from difformer import FeatureKey
from difformer.data import Boxes
from difformer.heads import DetectionHead, paste_masks
from difformer.heads.detectors import SeededSampler
from difformer.taps import TapSpec

LOSSES = {
    "faster_rcnn": ["loss_box_reg", "loss_classifier", "loss_objectness", "loss_rpn_box_reg"],
    "mask_rcnn": ["loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg"],
    "fcos": ["bbox_ctrness", "bbox_regression", "classification"],
    "retinanet": ["bbox_regression", "classification"],
}


def target(boxes, labels, **others):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    numbers = torch.tensor(labels, dtype=torch.int64)
    given = {"crowd": torch.zeros(len(boxes), dtype=torch.bool), "masks": masks} | others
    return Boxes(boxes, numbers, size=SIZE, **given)


def as_torchvision(one, first):
    """What torchvision's own detectors learn from."""
    return {"boxes": one.boxes, "labels": one.labels + first, "masks": one.masks}


FINEST = {FINE: TapSpec("out08", 19, 8, SIZE, 0)}
TARGETS = [target([[8, 8, 40, 48], [50, 10, 90, 30]], [0, 2]), target([], []), target([[30, 20, 60, 60]], [1])]
SEEDS = [11, 12, 13]


def strengthen(head):
    """Makes the scores of a RetinaNet differ. torchvision's initial weights are small, for 256 channels: of 32, nothing
    comes through four layers of them."""
    if head.arguments["detector"] == "retinanet":
        for layer in head.detector.head.modules():
            if isinstance(layer, nn.Conv2d) and layer.in_channels == layer.out_channels:
                nn.init.kaiming_normal_(layer.weight)
    return head


@pytest.mark.parametrize("detector", DETECTORS)
def test_each_image_has_its_losses_whatever_is_in_the_batch_with_it(detector):
    head = detection_head(detector).train()
    features = features_for(head)
    losses = head(features, TARGETS, seeds=SEEDS)
    assert sorted(losses) == LOSSES[detector]
    for name, loss in losses.items():
        assert (loss.shape, loss.dtype) == ((3,), torch.float32), name
        assert loss.isfinite().all()
    for i in range(3):
        alone = head.losses({key: value[i : i + 1] for key, value in features.items()}, TARGETS[i : i + 1], [SEEDS[i]])
        for name, loss in losses.items():
            torch.testing.assert_close(alone[name][0], loss[i], rtol=1e-4, atol=1e-5)
    # The mode of the head says nothing of whether losses are wanted.
    for name, loss in head.eval()(features, TARGETS, seeds=torch.tensor(SEEDS)).items():
        assert torch.equal(loss, losses[name])
    assert not any(module.training for module in head.modules())


@pytest.mark.parametrize("detector", DETECTORS)
def test_gradients_reach_every_parameter_and_every_feature(detector):
    head = detection_head(detector).train()
    features = {key: value.requires_grad_() for key, value in features_for(head).items()}
    sum(loss.sum() for loss in head(features, TARGETS, seeds=SEEDS).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, name
    for key, value in features.items():
        assert value.grad.isfinite().all()
        assert value.grad.abs().sum() > 0, key


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_parameter_has_a_gradient_where_nothing_is_to_be_found(detector):
    """Else several processes would wait for each other for ever."""
    head = detection_head(detector).train()
    losses = head(features_for(head), [TARGETS[1]] * 3, seeds=SEEDS)
    sum(loss.sum() for loss in losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn"])
def test_what_is_drawn_depends_on_the_seed_alone(detector):
    head = detection_head(detector).train()
    features = features_for(head)
    before = torch.get_rng_state()
    losses = head(features, TARGETS, seeds=SEEDS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = head(features, TARGETS, seeds=SEEDS)
    other = head(features, TARGETS, seeds=[11, 12, 14])
    assert all(torch.equal(again[name], loss) for name, loss in losses.items())
    assert all(torch.equal(other[name][:2], loss[:2]) for name, loss in losses.items())
    assert other["loss_objectness"][2] != losses["loss_objectness"][2]


def test_losses_are_torchvisions_of_a_batch_of_one():
    head = detection_head("retinanet")
    features = features_for(head)
    levels, height, width = head._levels(features)
    together = head._run(levels, height, width, [head._checked(one, height, width, 0) for one in TARGETS])
    for name, loss in head.losses(features, TARGETS, SEEDS).items():
        torch.testing.assert_close(loss.mean(), together[name])


class Given(nn.Module):
    """Levels in place of a backbone's."""

    out_channels = 32

    def forward(self, images):
        return self.levels


def stock(head):
    """An unmodified detector of torchvision with the weights of a head; only its anchors are moved to the centres of
    the cells. Its samples hold everything, so that nothing is left to chance."""
    name = head.arguments["detector"]
    plain = name in ("fcos", "retinanet")
    strides = [*head.strides, *(head.strides[-1] * 2 ** (i + 1) for i in range(2 if plain else 1))]
    least = {"fcos": 1, "retinanet": 4}.get(name, 8)
    octave = [1, 2 ** (1 / 3), 2 ** (2 / 3)] if name == "retinanet" else [1]
    sizes = tuple(tuple(int(least * stride * part) for part in octave) for stride in strides)
    anchors = AnchorGenerator(sizes, ((1.0,) if name == "fcos" else (0.5, 1.0, 2.0),) * len(sizes))
    anchors.cell_anchors = [one + stride / 2 for one, stride in zip(anchors.cell_anchors, strides, strict=True)]
    images = {"min_size": 64, "max_size": 96, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if plain:
        kind = torchvision_detection.FCOS if name == "fcos" else torchvision_detection.RetinaNet
        detector = kind(Given(), 3, anchor_generator=anchors, score_thresh=0.0, detections_per_img=7, **images)
    else:
        kind = torchvision_detection.FasterRCNN if name == "faster_rcnn" else torchvision_detection.MaskRCNN
        levels = [str(i) for i in range(len(head.strides))]
        masks = {} if name == "faster_rcnn" else {"mask_roi_pool": MultiScaleRoIAlign(levels, 14, 2)}
        detector = kind(
            Given(), 4, rpn_anchor_generator=anchors, box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
            box_score_thresh=0.0, box_detections_per_img=7, rpn_batch_size_per_image=10**6,
            box_batch_size_per_image=10**6, **masks, **images,
        )  # fmt: skip
    detector.load_state_dict(head.detector.state_dict())
    return detector


@pytest.mark.parametrize("detector", DETECTORS)
def test_losses_and_predictions_are_those_of_torchvisions_own_detector(detector):
    head = strengthen(detection_head(detector, score_threshold=0.0, max_detections=7)).eval()
    for sampler in head._samplers:
        sampler.positive = sampler.positive * 10**6 // sampler.number
        sampler.number = 10**6
    theirs, features = stock(head), features_for(head)
    losses, found = head(features, TARGETS, seeds=SEEDS), head(features)
    levels, *_ = head._levels(features)
    first = 0 if detector in ("fcos", "retinanet") else 1
    for i, one in enumerate(TARGETS):
        theirs.backbone.levels = {name: level[i : i + 1] for name, level in levels.items()}
        wanted = theirs.train()([torch.zeros(3, *SIZE)], [as_torchvision(one, first)])
        assert sorted(wanted) == sorted(losses)
        for name, loss in wanted.items():
            # Its targets of masks lie half a pixel off.
            if name != "loss_mask":
                torch.testing.assert_close(losses[name][i], loss)
        (wanted,) = theirs.eval()([torch.zeros(3, *SIZE)])
        torch.testing.assert_close(found[i].boxes, wanted["boxes"])
        torch.testing.assert_close(found[i].scores, wanted["scores"])
        assert torch.equal(found[i].labels, wanted["labels"] - first)
        if detector == "mask_rcnn":
            pasted = roi_heads.paste_masks_in_image(found[i].masks[:, None], found[i].boxes, SIZE)
            torch.testing.assert_close(pasted, wanted["masks"])


@pytest.mark.parametrize("detector", DETECTORS)
def test_anchors_are_centred_on_cells_and_symmetric(detector):
    head = detection_head(detector)
    generator = (head.detector if detector in ("fcos", "retinanet") else head.detector.rpn).anchor_generator
    for height, width in (SIZE, (72, 104)):
        maps = features_for(head, 1)
        maps = {key: torch.zeros(*value.shape[:2], height * value.shape[2] // 64, width * value.shape[3] // 96)
                for key, value in maps.items()}  # fmt: skip
        levels, *_ = head._levels(maps)
        images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
        (anchors,) = generator(images, list(levels.values()))
        assert (anchors[:, 2:] > anchors[:, :2]).all()
        stride = head.strides[0]
        for level in levels.values():
            rows, columns = level.shape[2:]
            per_cell = generator.generator.num_anchors_per_location()[0]
            part, anchors = anchors[: rows * columns * per_cell], anchors[rows * columns * per_cell :]
            centres = ((part[:, :2] + part[:, 2:]) / 2).view(rows, columns, per_cell, 2)
            assert torch.equal(centres[0, :, 0, 0], (torch.arange(columns) + 0.5) * stride)
            assert torch.equal(centres[:, 0, -1, 1], (torch.arange(rows) + 0.5) * stride)
            # Mirrored within the cells of the level, the same anchors are there.
            side = columns * stride
            mirrored = torch.stack([side - part[:, 2], part[:, 1], side - part[:, 0], part[:, 3]], dim=1)
            torch.testing.assert_close(
                mirrored.view(rows, columns, per_cell, 4).flip(1), part.view(rows, columns, per_cell, 4)
            )
            stride *= 2
        assert not len(anchors)


def ellipse(box, size=SIZE):
    """The pixels whose centres lie in the ellipse that fills a box."""
    x1, y1, x2, y2 = box
    x, y = torch.arange(size[1]) + 0.5, torch.arange(size[0]) + 0.5
    across = ((2 * x - x1 - x2) / (x2 - x1)) ** 2
    return across + ((2 * y - y1 - y2) / (y2 - y1))[:, None] ** 2 < 1


def assert_same_place(found, expected, box):
    """Areas and centroids agree to 1 %."""
    assert abs(int(found.sum()) - int(expected.sum())) <= 0.01 * expected.sum()
    shift = found.nonzero().double().mean(dim=0) - expected.nonzero().double().mean(dim=0)
    assert (shift.abs() <= 0.01 * torch.tensor([box[3] - box[1], box[2] - box[0]])).all()


def test_targets_of_masks_lie_where_the_objects_do(monkeypatch):
    """They are recorded, and pasted back into the image."""
    box = [9.0, 5.0, 41.0, 45.0]
    head = detection_head("mask_rcnn")
    targets, boxes = [], []
    project = roi_heads.project_masks_on_boxes

    def record(*arguments):
        targets.append(project(*arguments))
        return targets[-1]

    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", record)
    head.detector.roi_heads.mask_roi_pool.register_forward_pre_hook(lambda _, given: boxes.append(given[1][0].clone()))
    mask = ellipse(box)
    head.losses(features_for(head, 1), [target([box], [0], masks=mask[None])], [0])
    own = boxes[0].eq(torch.tensor(box)).all(dim=1)
    (pasted,) = paste_masks(targets[0][own], boxes[0][own], SIZE)
    assert_same_place(pasted, mask, box)


def test_the_sampler_draws_as_many_as_torchvisions():
    theirs = BalancedPositiveNegativeSampler(16, 0.25)
    ours = SeededSampler(theirs)
    ours.generator = torch.Generator().manual_seed(0)
    labels = [
        torch.tensor([1.0] * 10 + [0.0] * 50 + [-1.0] * 5),
        torch.tensor([2] + [0] * 40),
        torch.tensor([0] * 6 + [1] * 30),
        torch.zeros(30),
    ]
    for label, ours_, theirs_ in zip(
        labels, zip(*ours(labels), strict=True), zip(*theirs(labels), strict=True), strict=True
    ):
        for mine, yours in zip(ours_, theirs_, strict=True):
            assert (mine.dtype, mine.shape, mine.sum()) == (yours.dtype, yours.shape, yours.sum())
        assert label[ours_[0].bool()].ge(1).all()
        assert label[ours_[1].bool()].eq(0).all()


@pytest.mark.parametrize("detector", DETECTORS)
def test_predictions_are_in_pixels_and_do_not_depend_on_the_batch(detector):
    head = strengthen(detection_head(detector, score_threshold=0.0, max_detections=7)).eval()
    features = features_for(head)
    found = head(features)
    assert len(found) == 3
    for i, one in enumerate(found):
        assert len(one.boxes) == len(one.scores) == len(one.labels) == 7
        assert (one.boxes.dtype, one.labels.dtype) == (torch.float32, torch.int64)
        assert set(one.labels.tolist()) <= {0, 1, 2}
        assert one.boxes.amin() >= 0
        assert (one.boxes[:, 2:] <= torch.tensor([96.0, 64.0])).all()
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        assert (one.masks is not None) == (detector == "mask_rcnn")
        (alone,) = head.predict({key: value[i : i + 1] for key, value in features.items()})
        torch.testing.assert_close(alone.scores, one.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.boxes, one.boxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(alone.labels, one.labels)
        if one.masks is not None:
            torch.testing.assert_close(alone.masks, one.masks, rtol=1e-4, atol=1e-5)
        assert not one.boxes.requires_grad
    if detector == "mask_rcnn":
        assert found[0].masks.shape == (7, 28, 28)
        assert found[0].masks.amin() >= 0
        assert found[0].masks.amax() <= 1
    # Maps of a larger image, as high as it is wide.
    (larger,) = head(features_for(head, 1, (3, 2)))
    assert (larger.boxes <= 192).all()
    assert larger.boxes[:, 3].amax() > 64


@pytest.mark.parametrize("detector", DETECTORS)
def test_nothing_found_is_no_error(detector):
    head = detection_head(detector, score_threshold=0.99).eval()
    for one in head(features_for(head)):
        assert one.boxes.shape == (0, 4)
        assert one.masks is None or one.masks.shape == (0, 28, 28)


@pytest.mark.parametrize(
    "detector", [*DETECTORS[2:], *(pytest.param(detector, marks=pytest.mark.slow) for detector in DETECTORS[:2])]
)
def test_it_learns_to_find_bright_places(detector):
    """Boxes in pixels of an image that is not square, of features that are bright where the object lies."""
    torch.manual_seed(0)
    head = DetectionHead(PYRAMID, 2, detector=detector, width=32, image_size=SIZE)
    targets = [target([[8, 20, 44, 52]], [0]), target([[50, 4, 90, 36]], [1])]
    features = {key: 0.05 * value for key, value in features_for(head, batch=2).items()}
    for value in features.values():
        for i, one in enumerate(targets):
            value[i, i::2] += F.adaptive_avg_pool2d(one.masks.float(), value.shape[2:])[0]
    strengthen(head)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        losses = head(features, targets, seeds=[2 * step, 2 * step + 1])
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()
    for one, expected in zip(head.eval()(features), targets, strict=True):
        assert box_iou(one.boxes[:1], expected.boxes) > 0.6
        assert one.labels[:1].tolist() == expected.labels.tolist()
        if one.masks is not None:
            (mask,), (truth,) = paste_masks(one.masks[:1], one.boxes[:1], SIZE), expected.masks
            assert (mask & truth).sum() / (mask | truth).sum() > 0.6


def test_crowds_are_left_out():
    head = detection_head("mask_rcnn")
    features = features_for(head, batch=1)
    crowd = target([[30, 20, 60, 60], [0, 0, 90, 60]], [1, 0], crowd=torch.tensor([False, True]))
    losses, without = (head.losses(features, [one], [5]) for one in (crowd, TARGETS[2]))
    assert all(torch.equal(losses[name], loss) for name, loss in without.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Boxes that were moved are not checked again.
        ({"boxes": torch.zeros(1, 4)}, r"target 0: boxes must have x1 < x2 and y1 < y2, got \[\[0.0"),
        ({"boxes": torch.tensor([[0.0, 0.0, float("nan"), 4.0]])}, "x1 < x2"),
        ({"boxes": torch.tensor([[0.0, 0.0, float("inf"), 4.0]])}, "x1 < x2"),
        ({"labels": torch.tensor([3])}, r"labels must lie in \[0, 3\), got \[3\]"),
        ({"labels": torch.tensor([-1])}, r"labels must lie in \[0, 3\), got \[-1\]"),
        ({"size": (64, 64)}, r"of an image of 64×64 \(h × w\), and the features are of one of 64×96"),
        ({"masks": None}, "mask_rcnn learns from masks of objects, and there are none; set data.object_masks: true"),
    ],
)
def test_targets_that_do_not_fit_are_refused(change, message):
    head = detection_head("mask_rcnn")
    wrong = copy.copy(TARGETS[2])
    for name, value in change.items():
        object.__setattr__(wrong, name, value)
    with pytest.raises(ValueError, match=message):
        head.losses(features_for(head, batch=1), [wrong], [0])


@pytest.mark.parametrize("detector", DETECTORS)
def test_features_that_are_not_finite_are_no_empty_image(detector):
    head = detection_head(detector).eval()
    features = features_for(head)
    features[MIDDLE][1, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="the detector's features are not finite"):
        head(features)


def test_each_image_needs_a_target_and_a_seed():
    head = detection_head("fcos")
    features = features_for(head, batch=2)
    with pytest.raises(ValueError, match="each of 2 images needs a target and a seed, got 1 and 2"):
        head(features, TARGETS[:1], seeds=[1, 2])
    with pytest.raises(ValueError, match="each of 2 images needs a target and a seed, got 2 and 0"):
        head(features, TARGETS[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"detector": "yolo"}, "detector must be one of faster_rcnn, mask_rcnn, fcos, retinanet, got 'yolo'"),
        ({"detector": "fcos", "width": 48}, "width must be a multiple of 32 for fcos"),
        ({"detector": "fcos", "anchor_scale": 2}, "fcos has no anchors that anchor_scale 2.0 could be of"),
        (
            {"anchor_scale": 0.4},
            r"anchor_scale must be at least 0.5 for levels from stride 4 on, so that .* 2 pixels, got 0.4",
        ),
        ({"anchor_scale": 0.2, "detector": "retinanet"}, "anchor_scale must be at least 0.25 for levels from stride 8"),
        ({"detector": "fcos", "finest_stride": 1, "specs": FINEST}, "finest_stride must be at least 2 for fcos, got 1"),
        ({"anchor_scale": 0}, "anchor_scale must be a finite number above 0, got 0"),
        ({"score_threshold": 1}, "score_threshold must be a number of at least 0 and below 1, got 1"),
        ({"nms_threshold": -1}, "nms_threshold must be"),
        ({"max_detections": 0}, "max_detections must be a positive integer, got 0"),
        ({"finest_stride": 3}, "finest_stride must be a multiple of the stride"),
        (
            {"specs": {FINE: PYRAMID[FINE], COARSE: PYRAMID[COARSE]}, "finest_stride": 2},
            r"must be .* double .* got \[2, 8\]",
        ),
        (
            {"specs": {MIDDLE: TapSpec("out05", 1, 8, 16, 0)}, "image_size": 48, "finest_stride": 3},
            r"powers of two .* got \[3\]",
        ),
    ],
)
def test_bad_arguments_raise(arguments, message):
    given = {"specs": PYRAMID, "image_size": SIZE} | arguments
    specs = given.pop("specs")
    with pytest.raises(ValueError, match=message):
        DetectionHead(specs, 3, **given)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_head_can_be_rebuilt_from_its_arguments(detector):
    head = detection_head(detector, nms_threshold=0.4, score_threshold=0.0, max_detections=5).eval()
    arguments = json.loads(json.dumps(head.arguments))
    again = DetectionHead(head.specs, head.num_classes, **arguments).eval()
    assert again.arguments == head.arguments == arguments
    again.load_state_dict(head.state_dict())
    for one in (again, copy.deepcopy(head)):
        for found, expected in zip(one(features_for(head)), head(features_for(head)), strict=True):
            assert torch.equal(found.boxes, expected.boxes)


@pytest.mark.parametrize(
    ("detector", "expected"),
    [
        ("faster_rcnn", "fpn.inner_blocks fpn.layer_blocks roi_heads.box_head roi_heads.box_predictor rpn.head"),
        ("fcos", "fpn.extra_blocks fpn.inner_blocks fpn.layer_blocks head.classification_head head.regression_head"),
    ],
)
def test_weights_keep_torchvisions_names(detector, expected):
    names = [name.split(".") for name in detection_head(detector).state_dict()]
    parts = {".".join(name[1:3] if name[0] == "detector" else name[:2]) for name in names}
    assert sorted(parts) == expected.split()


def test_one_block_is_enough():
    head = detection_head("retinanet", ONE).train()
    losses = head(features_for(head, batch=1), TARGETS[:1], seeds=[0])
    assert all(loss.isfinite().all() for loss in losses.values())
    assert head.strides == (8,)
    assert detection_head("faster_rcnn", ONE).strides == (4,)
    with pytest.raises(ValueError, match="features lack"):
        head({FeatureKey("out05", 51): torch.zeros(1)})


@pytest.mark.parametrize(("detector", "scale"), [("faster_rcnn", 0.5), ("retinanet", 0.25)])
def test_the_smallest_anchors_can_be_learned_from(detector, scale):
    head = detection_head(detector, anchor_scale=scale).train()
    losses = head(features_for(head), TARGETS, seeds=SEEDS)
    assert all(loss.isfinite().all() for loss in losses.values())


def test_masks_of_boxes_are_pasted_into_images():
    boxes = torch.tensor([[10.0, 20.0, 40.0, 50.0], [-5.0, -5.0, 8.0, 9.0], [90.0, 60.0, 120.0, 80.0]])
    masks = torch.ones(3, 28, 28)
    masks[0, :, 14:] = 0
    pasted = paste_masks(masks, boxes, SIZE)
    # One after the other.
    first = next(pasted)
    assert (first.shape, first.dtype) == ((64, 96), torch.bool)
    for found, (top, bottom, left, right) in zip(
        (first, *pasted), ((20, 50, 10, 25), (0, 9, 0, 8), (60, 64, 90, 96)), strict=True
    ):
        expected = torch.zeros(SIZE, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert torch.equal(found, expected)
    assert list(paste_masks(masks[:0], boxes[:0], SIZE)) == []
    # Between the centres of pixels, or outside of the image.
    nowhere = torch.tensor([[10.6, 20.0, 11.4, 50.0], [100.0, 0.0, 120.0, 9.0], [-9.0, 0.0, -1.0, 9.0]])
    assert not any(found.any() for found in paste_masks(masks, nowhere, SIZE))


@pytest.mark.parametrize("side", [10, 16, 60])
@pytest.mark.parametrize("start", [3.0, 3.25, 3.5, 3.9])
def test_a_full_mask_fills_its_box_and_no_more(side, start):
    box = torch.tensor([[start, start, start + side, start + side]])
    (found,) = paste_masks(torch.ones(1, 28, 28), box, SIZE)
    assert found.sum() == min(side, 61) ** 2
    rows, columns = found.nonzero().unbind(dim=1)
    for places in (rows, columns):
        assert places.double().mean() + 0.5 == pytest.approx(start + side / 2, abs=0.5)


@pytest.mark.parametrize("box", [[9.0, 5.0, 53.0, 57.0], [30.4, 10.7, 81.9, 49.2]])
def test_pasted_masks_keep_their_area_and_place(box):
    mask = F.avg_pool2d(ellipse([0, 0, 280, 280], (280, 280)).float()[None], 10)
    (found,) = paste_masks(mask, torch.tensor([box]), SIZE)
    assert_same_place(found, ellipse(box), box)
