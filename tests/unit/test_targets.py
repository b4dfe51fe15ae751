"""Masks, boxes and points: what they must be, and that they move as pixels do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.data import IGNORE, Boxes, Mask, Points, moved
from difformer.data.targets import box_problem

SIZE = (12, 20)


def boxes(*corners, size=SIZE, **more):
    n = len(corners)
    values = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    return Boxes(values, torch.arange(n), torch.zeros(n, dtype=torch.bool), size, **more)


def points(*xy, swap=None, box=None):
    return Points(torch.tensor(xy, dtype=torch.float32), torch.ones(len(xy), dtype=torch.bool), SIZE, swap, box)


def filled(box, size=SIZE):
    """(1, H, W), the pixels of a box of whole numbers."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, y1:y2, x1:x2] = True
    return mask


def bounds(mask):
    """The box around the pixels of a mask."""
    y, x = np.nonzero(mask.numpy())
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


MOVES = {
    "flip": lambda target: target.flip(),
    "crop": lambda target: target.crop(2, 3, 9, 15),
    "pad": lambda target: target.pad(16, 25),
    "double": lambda target: target.resize(24, 40),
    "half": lambda target: target.resize(6, 10),
    "stretch": lambda target: target.resize(24, 10),
}


@pytest.mark.parametrize("name", MOVES)
def test_boxes_masks_and_points_move_as_pixels_do(name):
    box = (4, 4, 12, 10)
    move = MOVES[name]
    moved_boxes = move(boxes(box, masks=filled(box)))
    assert moved_boxes.boxes.tolist() == [bounds(moved_boxes.masks[0])]
    labels = move(Mask(filled(box)[0].byte())).labels
    assert labels.shape == moved_boxes.size
    assert torch.equal(labels == 1, moved_boxes.masks[0])
    x1, y1, x2, y2 = moved_boxes.boxes[0].tolist()
    corners = move(points(box[:2], box[2:], swap=(0, 1)))
    assert sorted(corners.points[:, 0].tolist()) == [x1, x2]
    assert sorted(corners.points[:, 1].tolist()) == [y1, y2]
    assert corners.size == moved_boxes.size


@st.composite
def two_boxes(draw):
    """x1, y1, x2, y2 in an image of `SIZE`."""
    found = []
    for _ in range(2):
        x, y = draw(st.integers(0, 76)) / 4, draw(st.integers(0, 44)) / 4
        found.append((x, y, x + draw(st.integers(4, 80)) / 4, y + draw(st.integers(4, 48)) / 4))
    return [(x1, y1, min(x2, 20), min(y2, 12)) for x1, y1, x2, y2 in found]


@given(two_boxes())
@settings(max_examples=50, deadline=None)
def test_boxes_move_as_torchvisions(corners):
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    ours = boxes(*corners)
    theirs = tv_tensors.BoundingBoxes(ours.boxes, format="XYXY", canvas_size=SIZE)
    assert torch.equal(ours.flip().boxes, functional.horizontal_flip(theirs))
    assert torch.allclose(ours.resize(30, 17).boxes, functional.resize(theirs, [30, 17]))
    cropped = functional.crop(theirs, 2, 3, 9, 15)
    kept = ((cropped[:, 2] - cropped[:, 0]) >= 1) & ((cropped[:, 3] - cropped[:, 1]) >= 1)
    assert torch.equal(ours.crop(2, 3, 9, 15).boxes, cropped[kept])
    assert torch.equal(ours.flip().flip().boxes, ours.boxes)


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 48)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_points_move_with_their_corner_of_the_image(xy):
    """A point is moved as the corner of a box is."""
    ours = points(*[(x / 4, y / 4) for x, y in xy], swap=tuple(range(len(xy))))
    corners = torch.cat([ours.points, ours.points + 1], 1)
    scaled = ours.resize(30, 17)
    assert torch.allclose(scaled.points, corners[:, :2] * torch.tensor([17 / 20, 30 / 12]))
    assert torch.equal(ours.flip().points[:, 0], 20 - ours.points[:, 0])
    assert torch.equal(ours.flip().flip().points, ours.points)
    assert torch.equal(ours.crop(2, 3, 9, 15).pad(20, 20).points, ours.points - torch.tensor([3.0, 2]))


def test_a_mask_is_padded_with_what_is_ignored():
    mask = Mask(torch.zeros(2, 3, dtype=torch.uint8)).pad(4, 5)
    assert mask.size == (4, 5)
    assert (mask.labels == IGNORE).sum() == 20 - 6


def test_nearest_labels_are_pillows():
    """Ours goes by the centres of pixels, as Pillow's does, and not by their corners."""
    from PIL import Image

    labels = np.random.default_rng(0).integers(0, 250, (37, 53), dtype=np.uint8)
    for height, width in ((12, 20), (80, 90), (37, 17)):
        pillow = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
        found = Mask(torch.from_numpy(labels)).resize(height, width).labels.numpy()
        assert (found == pillow).mean() > 0.99, "ties aside"


def test_cropped_boxes_are_cut_and_those_that_are_gone_are_left_out():
    cut = boxes((0, 0, 4, 4), (2, 2, 10, 10), (15, 0, 20, 4)).crop(3, 3, 9, 12)
    assert cut.boxes.tolist() == [[0, 0, 1, 1], [0, 0, 7, 7]]
    assert cut.labels.tolist() == [0, 1]
    assert cut.areas.tolist() == [1, 49]
    assert cut.crowd.shape == (2,)


def test_an_object_whose_mask_is_gone_is_left_out():
    mask = filled((0, 0, 3, 3))
    cut = boxes((0, 0, 10, 10), masks=mask).crop(4, 4, 8, 8)
    assert (len(cut.boxes), len(cut.masks)) == (0, 0)


def test_images_without_objects():
    empty = boxes()
    for move in MOVES.values():
        assert move(empty).boxes.shape == (0, 4)
    with_masks = boxes(masks=torch.zeros(0, *SIZE, dtype=torch.bool))
    assert with_masks.resize(6, 10).masks.shape == (0, 6, 10)


def test_areas_are_those_of_the_boxes_unless_given():
    assert boxes((0, 0, 4, 5)).areas.tolist() == [20]
    given = boxes((0, 0, 4, 5), areas=torch.tensor([7.0]))
    assert given.resize(24, 40).areas.tolist() == [28]
    assert given.flip().areas.tolist() == [7]


def test_boxes_are_cut_at_the_edges_and_the_given_tensor_is_left_alone():
    values = torch.tensor([[-0.5, 0, 20.75, 12]])
    found = Boxes(values, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), SIZE)
    assert found.boxes.tolist() == [[0, 0, 20, 12]]
    assert values[0, 0] == -0.5


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ((1, 1, 1, 4), "has no width or height"),
        ((4, 1, 1, 4), "has no width or height"),
        ((0, 0, float("nan"), 4), "is not finite"),
        ((0, 0, float("inf"), 4), "is not finite"),
        ((-2, 0, 4, 4), "reaches out of its image of 12×20"),
        ((0, 0, 4, 14), "reaches out of its image of 12×20"),
        ((20, 0, 20.5, 4), "lies outside its image"),
        ((19.99999999, 0, 20.5, 4), "lies outside its image"),
        ((19.995, 0, 20.5, 4), "is less than 0.01 pixels wide or high"),
        ((4, 1, 4.009, 4), "is less than 0.01 pixels wide or high"),
        ((4, -0.5, 5, 0.009), "is less than 0.01 pixels wide or high"),
        ((4, 1, 4 + 1e-9, 4), "has no width or height"),
        ((0, 0, 1e39, 4), "is not finite"),
    ],
)
def test_what_is_no_box(box, problem):
    assert box_problem(list(box), SIZE) == problem
    with pytest.raises(ValueError, match=problem):
        boxes(box)


def test_small_boxes_may_be_moved():
    """In float32 nothing may be left of them, which is no mistake of a file."""
    small = Boxes(
        torch.tensor([[0, 0, 0.011, 0.011]]), torch.zeros(1).long(), torch.zeros(1).bool(), (8000, 8000)
    ).resize(1, 1)
    for found in (small, small.flip(), small.pad(8192, 8192).flip(), small.pad(8192, 8192).flip().resize(4, 4)):
        assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    assert small.pad(8192, 8192).flip().boxes[0, ::2].tolist() == [8192, 8192]
    assert len(small.pad(8192, 8192).crop(0, 0, 9, 9).boxes) == 0


def test_left_and_right_points_change_places():
    flipped = points((0.5, 1), (7, 2), (9, 3), swap=(1, 0, 2), box=(1, 2, 5, 6)).flip()
    assert flipped.points.tolist() == [[13, 2], [19.5, 1], [11, 3]]
    assert flipped.box == (15, 2, 19, 6)
    back = flipped.flip()
    assert back.points.tolist() == [[0.5, 1], [7, 2], [9, 3]]
    assert back.box == (1, 2, 5, 6)


def test_points_whose_partners_are_not_known_are_not_mirrored():
    with pytest.raises(ValueError, match="set flip_pairs"):
        points((1, 1)).flip()


def test_points_that_are_cropped_off_are_not_visible():
    cropped = points((1, 1), (5, 5), (11, 5)).crop(2, 2, 6, 9)
    assert cropped.visible.tolist() == [False, True, False]


@pytest.mark.parametrize("swap", [(1, 2, 0), (0, 0, 2), (0, 1), (0, 1, 3)])
def test_a_swap_that_is_no_involution(swap):
    with pytest.raises(ValueError, match="what changes places twice is as before"):
        points((1, 1), (2, 2), (3, 3), swap=swap)


def test_shapes_and_types():
    with pytest.raises(ValueError, match=r"labels of a mask must be a tensor .*, got \(2, 2\) torch.int64"):
        Mask(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels of boxes must be a tensor \(1,\)"):
        Boxes(torch.tensor([[0.0, 0, 1, 1]]), torch.zeros(2).long(), torch.zeros(1).bool(), SIZE)
    with pytest.raises(ValueError, match="visible must be a tensor"):
        Points(torch.zeros(3, 2), torch.ones(2, dtype=torch.bool), SIZE)
    with pytest.raises(ValueError, match="visible points must be finite"):
        points((float("nan"), 1))
    with pytest.raises(ValueError, match=r"masks of boxes must be a tensor \(1, 12, 20\)"):
        boxes((0, 0, 4, 4), masks=torch.zeros(1, 20, 12, dtype=torch.bool))


def test_targets_move_to_a_device():
    found = moved(boxes((0, 0, 4, 4), masks=filled((0, 0, 4, 4))), "meta")
    assert {found.boxes.device.type, found.areas.device.type, found.masks.device.type} == {"meta"}
