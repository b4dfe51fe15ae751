"""Transforms of images with their targets: what they do, and that they are functions of (seed, epoch, id) alone."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from difformer.data import IGNORE, Boxes, DataConfig, Mask, Points, sample_generator
from difformer.data.joint import Jittered, Whole, check_mirrored, create_joint_transform, distort

HEIGHT, WIDTH = 48, 64


def scene(x=20, y=10, width=16, height=12):
    """A grey image with one bright rectangle, and its targets."""
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[y : y + height, x : x + width] = 1
    image = Image.fromarray(np.repeat((labels * 150 + 50)[..., None], 3, axis=2))
    box = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
    one = torch.ones(1, dtype=torch.bool)
    mask = torch.from_numpy(labels)
    targets = {
        "mask": Mask(mask),
        "boxes": Boxes(box, torch.tensor([2]), ~one, (HEIGHT, WIDTH), masks=mask[None].bool()),
        "points": Points(box[:, :2] + box[:, 2:] - box[:, :2].add(box[:, 2:]) / 2, one, (HEIGHT, WIDTH), swap=(0,)),
    }
    return image, targets


def rectangle(image):
    """x1, y1, x2, y2 of the bright pixels of an image in [-1, 1]; None where there are none."""
    y, x = np.nonzero((image.mean(0) > 0).numpy())
    return None if len(x) == 0 else [x.min(), y.min(), x.max() + 1, y.max() + 1]


def draws(transform, kind, count=40):
    image, targets = scene()
    return [transform(image, targets[kind], sample_generator(0, 0, number)) for number in range(count)]


def global_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("transform", [Whole((20, 30), flip=True), Jittered(32), Jittered((24, 40), photometric=False)])
@pytest.mark.parametrize("kind", ["mask", "boxes", "points"])
def test_a_function_of_seed_epoch_and_id(transform, kind):
    image, targets = scene()
    before = global_state()
    first, again, other = (
        transform(image, targets[kind], sample_generator(*key)) for key in ((3, 1, 5), (3, 1, 5), (3, 2, 5))
    )
    assert global_state() == before
    assert torch.equal(first[0], again[0])
    for name, value in vars(first[1]).items():
        assert torch.equal(value, vars(again[1])[name]) if torch.is_tensor(value) else value == vars(again[1])[name]
    assert isinstance(transform, Whole) or not torch.equal(first[0], other[0])
    height, width = (transform.size, transform.size) if isinstance(transform.size, int) else transform.size
    assert first[0].shape == (3, height, width)
    assert first[0].dtype == torch.float32
    assert -1.001 <= first[0].min() <= first[0].max() <= 1.001
    assert first[1].size == (height, width)


@pytest.mark.parametrize("transform", [Whole((20, 30), flip=True), Jittered(32, photometric=False)])
def test_masks_stay_with_their_pixels(transform):
    for image, target, _ in draws(transform, "mask"):
        labels, bright = target.labels, image.mean(0) > 0
        assert ((labels == 1) ^ (bright & (labels != IGNORE))).sum() <= 0.1 * labels.numel() ** 0.5 * 8
        assert (image[:, labels == IGNORE] == 0).all(), "padding is grey"


def test_boxes_and_their_masks_stay_with_their_pixels():
    seen = 0
    for image, target, _ in draws(Jittered(32, photometric=False), "boxes"):
        found = rectangle(image)
        if len(target.boxes):
            seen += 1
            assert np.abs(np.asarray(found) - target.boxes[0].numpy()).max() <= 1.01
            assert target.labels.tolist() == [2]
            assert target.masks.shape == (1, 32, 32)
            inside = (image.mean(0) > 0)[target.masks[0]]
            assert inside.float().mean() > 0.75
    assert seen > 20


def test_points_stay_with_their_pixels():
    visible = 0
    for image, target, _ in draws(Jittered(32, scales=(0.4, 0.7), photometric=False), "points"):
        found = rectangle(image)
        if target.visible[0] and found[0] > 0 and found[1] > 0 and found[2] < 32 and found[3] < 32:
            visible += 1
            middle = [(found[0] + found[2]) / 2, (found[1] + found[3]) / 2]
            assert np.abs(np.asarray(middle) - target.points[0].numpy()).max() <= 1
    assert visible > 5


def test_scale_jitter_covers_its_range_and_half_is_mirrored():
    image = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3)))
    mask = Mask(torch.zeros(256, 256, dtype=torch.uint8))
    transform = Jittered(64, scales=(0.5, 2.0), category_ratio=1, photometric=False)
    results = [transform(image, mask, sample_generator(0, 0, i)) for i in range(300)]
    slopes, kept = [], []
    for pixels, target, _ in results:
        there = (target.labels[0] != IGNORE).nonzero().flatten()
        kept.append(len(there))
        row = pixels[0, 0, there]
        slopes.append(float((row[-1] - row[0]) * 127.5 / (len(there) - 1)))
    sides = 256 / np.abs(slopes)
    assert 0.4 < np.mean(np.asarray(slopes) < 0) < 0.6
    assert 31 < sides.min() < 36
    assert 120 < sides.max() < 132
    assert min(kept) < 36
    assert max(kept) == 64


def test_the_short_side_may_be_another_than_the_crop():
    image, targets = scene()
    transform = Jittered(24, resize=48, scales=(1, 1), category_ratio=1, photometric=False)
    pixels, target, _ = transform(image, targets["boxes"], sample_generator(0, 0, 0))
    assert pixels.shape == (3, 24, 24)
    same = Jittered(48, scales=(1, 1), category_ratio=1, photometric=False)
    whole = same(image, targets["boxes"], sample_generator(0, 0, 0))[1]
    assert whole.areas.tolist() == [192.0]
    assert not len(target.areas) or target.areas.max() <= 192


def test_crops_that_one_class_fills_are_drawn_again():
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[:, 48:] = 1
    image, mask = Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)), Mask(torch.from_numpy(labels))
    shares = {}
    for ratio in (0.75, 1):
        transform = Jittered(16, resize=64, scales=(1, 1), category_ratio=ratio, photometric=False)
        crops = [transform(image, mask, sample_generator(0, 0, i))[1].labels for i in range(60)]
        shares[ratio] = np.mean([max((crop == 0).float().mean(), (crop == 1).float().mean()) < 0.75 for crop in crops])
    assert shares[0.75] > 3 * shares[1] > 0


def test_distortion_changes_colours_only_and_half_the_time():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = [distort(image, sample_generator(0, 0, i)) for i in range(100)]
    assert sum(torch.allclose(result, image, atol=1e-6) for result in results) == pytest.approx(100 / 16, abs=6)
    assert all(result.abs().max() <= 1.0001 for result in results)
    flat = torch.full((3, 4, 4), 0.2)
    for i in range(20):
        result = distort(flat, sample_generator(0, 0, i))
        assert torch.allclose(result, result[:, :1, :1].expand_as(result), atol=1e-6)


def test_distortion_is_torchvisions():
    """The same steps by torchvision's own transform, with its numbers set."""
    from torchvision.transforms import v2

    theirs = v2.RandomPhotometricDistort()
    assert (theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue, theirs.p) == (
        (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05), 0.5,
    )  # fmt: skip


class TestWhole:
    def test_stretched(self):
        image, targets = scene()
        pixels, target, origin = Whole((24, 16))(image, targets["boxes"], sample_generator(0, 0, 0))
        assert pixels.shape == (3, 24, 16)
        assert target.boxes.tolist() == [[5, 5, 9, 11]]
        assert origin.boxes(target.boxes).tolist() == targets["boxes"].boxes.tolist()
        assert origin.target is targets["boxes"]

    def test_padded(self):
        image, targets = scene()
        pixels, target, origin = Whole(32, "pad")(image, targets["boxes"], sample_generator(0, 0, 0))
        assert pixels.shape == (3, 32, 32)
        assert (pixels[:, 24:] == 0).all()
        assert target.boxes.tolist() == [[10, 5, 18, 11]]
        assert origin.shown == (24, 32)
        assert origin.boxes(target.boxes).tolist() == targets["boxes"].boxes.tolist()
        mask = Whole(32, "pad")(image, targets["mask"], sample_generator(0, 0, 0))[1]
        assert (mask.labels[24:] == IGNORE).all()
        assert (mask.labels[:24] != IGNORE).all()

    def test_kept(self):
        image, targets = scene()
        pixels, target, origin = Whole(32, "keep")(image, targets["mask"], sample_generator(0, 0, 0))
        assert pixels.shape == (3, HEIGHT, WIDTH)
        assert torch.equal(target.labels, targets["mask"].labels)
        scaled, _, origin = Whole(32, "keep", resize=96)(image, targets["mask"], sample_generator(0, 0, 0))
        assert scaled.shape == (3, 96, 128)
        assert origin.shown == (96, 128)
        assert origin.target.size == (HEIGHT, WIDTH)

    @pytest.mark.parametrize("fit", ["stretch", "pad", "keep"])
    def test_maps_go_back_to_the_image(self, fit):
        """Of a map that says where each pixel of the input comes from, what comes back is each pixel's own place."""
        _image, targets = scene()
        ramp = torch.arange(WIDTH) + 0.5
        across = Image.fromarray(np.tile((ramp * 2).byte().numpy()[None, :, None], (HEIGHT, 1, 3)))
        pixels, _, origin = Whole(96, fit)(across, targets["mask"], sample_generator(0, 0, 0))
        back = origin.maps(pixels, tuple(pixels.shape[1:]))
        assert back.shape == (3, HEIGHT, WIDTH)
        places = (back + 1) * 127.5 / 2
        assert (places[0, :, 2:-2] - ramp[2:-2]).abs().max() < 0.6
        assert origin.maps(pixels.half(), tuple(pixels.shape[1:])).dtype == torch.float32, "as losses and windows"
        assert torch.equal(
            origin.maps(pixels.half(), tuple(pixels.shape[1:])),
            origin.maps(pixels.half().float(), tuple(pixels.shape[1:])),
        )
        coarse = origin.maps(pixels[:, ::2, ::2], tuple(pixels.shape[1:]))
        assert coarse.shape == (3, HEIGHT, WIDTH)
        assert (coarse[:, 5:-5, 5:-5] - back[:, 5:-5, 5:-5]).abs().max() < 0.02

    def test_points_go_back_to_the_image(self):
        image, targets = scene()
        for fit in ("stretch", "pad", "keep"):
            _, target, origin = Whole((40, 52), fit)(image, targets["points"], sample_generator(0, 0, 0))
            assert torch.allclose(origin.points(target.points), targets["points"].points, atol=1e-4)


class TestObjects:
    def points(self, box):
        xy = torch.tensor([[box[0] + 4.0, box[1] + 5.0]])
        return Points(xy, torch.ones(1, dtype=torch.bool), (HEIGHT, WIDTH), (0,), box)

    def test_the_box_is_cropped_and_enlarged(self):
        image, _ = scene(x=20, y=10, width=16, height=12)
        target = self.points((20.0, 10.0, 36.0, 22.0))
        pixels, found, origin = Whole(32, box_scale=2.0)(image, target, sample_generator(0, 0, 0))
        assert (origin.start, origin.size) == ((0, 12), (32, 32)), "twice the longer side, about the middle"
        assert rectangle(pixels) == [8, 10, 24, 22]
        assert found.points.tolist() == [[12, 15]]
        assert torch.equal(origin.points(found.points), target.points)

    def test_beyond_the_edges_it_is_black(self):
        image, _ = scene()
        pixels, found, origin = Whole(16, box_scale=2.0)(
            image, self.points((0.0, 0.0, 16.0, 16.0)), sample_generator(0, 0, 0)
        )
        assert origin.start == (-8, -8)
        assert (pixels[:, :3, :] == -1).all()
        assert found.points.tolist() == [[6, 6.5]]

    def test_jitter_begins_with_the_box(self):
        image, _ = scene()
        transform = Jittered(16, scales=(1, 1), photometric=False, box_scale=1.0)
        pixels, found, _ = transform(image, self.points((20.0, 10.0, 36.0, 26.0)), sample_generator(0, 0, 0))
        assert pixels.shape == (3, 16, 16)
        assert found.points[0].tolist() in ([4, 5], [12, 5])


def test_the_configuration_says_which():
    config = DataConfig("masks", size=32, augmentation="jitter", scales=(0.75, 1.5), category_ratio=0.9)
    assert create_joint_transform(config, True) == Jittered(32, None, (0.75, 1.5), 0.9, False)
    assert create_joint_transform(config, False) == Whole(32)
    flip = DataConfig("masks", size=32, augmentation="flip", fit="pad")
    assert create_joint_transform(flip, True) == Whole(32, "pad", flip=True)
    assert create_joint_transform(DataConfig("masks", size=32), True) == Jittered(32)


def test_augmentations_of_classes_are_refused():
    with pytest.raises(ValueError, match="must be one of none, flip, jitter, published, got 'crop'"):
        create_joint_transform(DataConfig("masks", augmentation="crop"), True)
    with pytest.raises(ValueError, match="random_erasing is for classes"):
        create_joint_transform(DataConfig("masks", random_erasing=0.5), True)


def test_points_without_partners_are_not_mirrored(caplog):
    image, targets = scene()
    lonely = Points(targets["points"].points, targets["points"].visible, (HEIGHT, WIDTH))
    transform = Jittered(32, scales=(0.5, 0.5), photometric=False)
    for number in range(10):
        assert transform(image, lonely, sample_generator(0, 0, number))[1].points[0, 0] < 16
    check_mirrored(transform, lonely, "faces")
    assert "faces: images are not mirrored" in caplog.text
    with pytest.raises(ValueError, match="set flip_pairs to the points that change places"):
        check_mirrored(Whole(32, flip=True), lonely, "faces")


def test_a_line_of_pixels_does_not_fill_the_memory():
    image, mask = Image.new("RGB", (60_000, 1)), Mask(torch.zeros(1, 60_000, dtype=torch.uint8))
    for transform in (Jittered(64), Whole(64), Whole(64, "keep", resize=64)):
        pixels, target, _ = transform(image, mask, sample_generator(0, 0, 0))
        assert pixels.shape[1:] == target.size
        assert pixels.numel() < 3 * 8192 * 64
