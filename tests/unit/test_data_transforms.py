"""Training transforms: what they do, and that their randomness depends on (seed, epoch, id) alone."""

import json
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from data_sets import make_folder, pixels
from PIL import Image
from torch.utils.data import DataLoader

from difformer.data import (
    Preprocessing,
    PublishedTransform,
    collate,
    create_dataset,
    create_transform,
    sample_generator,
    transform_description,
)
from difformer.data.images import resize_to_cover
from difformer.data.transforms import Isolated

NAMES = ["published", "shift", "crop", "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "3a", "original"]
PICTURE = Image.fromarray(pixels(0, 40, 60))


def global_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def draw(transform, epoch=0, number=5):
    return transform(PICTURE, sample_generator(0, epoch, number))


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_seed_epoch_and_id(name):
    transform = create_transform(name, 16)
    before = global_state()
    first = draw(transform)
    assert first.shape == (3, 16, 16)
    assert first.dtype == torch.float32
    assert first.min() >= -1
    assert first.max() <= 1
    assert torch.equal(first, draw(transform))
    assert not torch.equal(first, draw(transform, epoch=1))
    assert not torch.equal(first, draw(transform, number=6))
    assert global_state() == before


def test_none_is_the_evaluation_transform():
    assert torch.equal(draw(create_transform("none", 16, resize=20)), Preprocessing(16, 20)(PICTURE))


def test_the_published_sizes():
    assert PublishedTransform(256).short_sides == (256, 320)
    with pytest.raises(ValueError, match="smallest <= largest"):
        PublishedTransform(256, (200, 320))


def test_the_published_transform_covers_its_range_and_nothing_else():
    """Of an image that is a ramp from left to right, a crop shows its scale, its place and whether it is flipped."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3)))
    transform = PublishedTransform(64, (64, 128))
    crops = [transform(ramp, sample_generator(0, 0, i))[0, 0] for i in range(300)]
    slopes = torch.stack([(crop[-1] - crop[0]) * 127.5 / 63 for crop in crops])
    assert 0.4 < (slopes < 0).float().mean() < 0.6
    # A short side of s pixels makes the ramp 256 / s grey values a pixel steep.
    sides = 256 / slopes.abs()
    assert 62 < sides.min() < 67
    assert 122 < sides.max() < 132
    lefts = torch.stack([crop.min() for crop in crops])
    assert lefts.min() < -0.95
    assert lefts.max() > -0.2


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("transform", [PublishedTransform(64), lambda image, rng: Preprocessing(64)(image)])
def test_a_line_of_pixels_does_not_fill_the_memory(size, transform, monkeypatch):
    from PIL.Image import Image as Picture

    areas = []
    resize = Picture.resize
    monkeypatch.setattr(
        Picture, "resize", lambda image, shape, *a, **k: areas.append(shape) or resize(image, shape, *a, **k)
    )
    line = Image.fromarray(pixels(0, *size))
    assert transform(line, sample_generator(0, 0, 0)).shape == (3, 64, 64)
    assert max(width * height for width, height in areas) <= 80 * 80 * 32


def test_long_images_are_resized_whole():
    """Up to 32 times as long as wide, everything is as torchvision does it."""
    from torchvision.transforms.v2 import functional

    picture = Image.fromarray(pixels(0, 4, 128))
    assert resize_to_cover(picture, 8) == functional.resize(picture, [8])
    assert PublishedTransform(16)(Image.fromarray(pixels(0, 1, 1)), sample_generator(0, 0, 0)).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flip", [(0, False), (0, True)]),
        ("flips", [(0, False), (0, True), (2, False), (2, True)]),
        ("symmetries", [(turns, flip) for turns in range(4) for flip in (False, True)]),
    ],
)
def test_symmetries_are_all_drawn_and_no_others(name, expected):
    square = Image.fromarray(pixels(3, 20, 20))
    whole = Preprocessing(16)(square)
    group = [torch.rot90(whole.flip(2) if flip else whole, turns, (1, 2)) for turns, flip in expected]
    transform = create_transform(name, 16)
    drawn = [transform(square, sample_generator(0, 0, i)) for i in range(80)]
    found = [[torch.equal(result, image) for image in group] for result in drawn]
    assert all(sum(row) == 1 for row in found)
    assert all(any(column) for column in zip(*found, strict=True))


def test_shifts_of_every_length_are_drawn_and_no_others():
    """What is inside was moved by at most an eighth of the side, and what comes in is the reflected edge."""
    square = Image.fromarray(pixels(3, 20, 20))
    whole = Preprocessing(16)(square)
    reflected = torch.from_numpy(np.pad(whole.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect"))
    moved = {(top, left): reflected[:, top : top + 16, left : left + 16] for top in range(5) for left in range(5)}
    group = [view for image in moved.values() for view in (image, image.flip(2))]
    transform = create_transform("shift", 16)
    drawn = [transform(square, sample_generator(0, 0, i)) for i in range(500)]
    found = [[torch.equal(result, image) for image in group] for result in drawn]
    assert all(sum(row) == 1 for row in found)
    assert all(any(column) for column in zip(*found, strict=True))


def test_an_exact_fit_is_only_flipped():
    square = Image.fromarray(pixels(3, 16, 16))
    whole = Preprocessing(16)(square)
    results = [PublishedTransform(16, (16, 16))(square, sample_generator(0, 0, i)) for i in range(20)]
    flipped = [torch.equal(result, whole.flip(2)) for result in results]
    assert all(flip or torch.equal(result, whole) for flip, result in zip(flipped, results, strict=True))
    assert 0 < sum(flipped) < 20


def test_random_erasing():
    erased = [draw(create_transform("crop", 16, random_erasing=1.0), number=i) for i in range(5)]
    assert all((image == 0).any() for image in erased)
    with pytest.raises(ValueError, match="random_erasing needs"):
        create_transform("published", 16, random_erasing=0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("publishd", "did you mean 'published'"),
        ("xyzq", "known are none"),
        ("rand-q9", "timm"),
        ("rand-mm", "section 'mm'"),
        ("3a-x", "section 'x'"),
        ("crop-m9", "section 'm9'"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        create_transform(name, 16)


def test_isolation_holds_when_the_body_fails():
    before = global_state()

    def fail(image):
        random.random(), np.random.rand(), torch.rand(1)
        raise KeyError

    with pytest.raises(KeyError):
        Isolated(fail)(PICTURE, np.random.default_rng(0))
    assert global_state() == before


class TestDescription:
    BASE: ClassVar = {"name": "folder", "size": 16}

    @pytest.mark.parametrize(
        ("changes", "augment", "expected"),
        [
            ({"resize": 20, "seed": 3}, False, ("none", 20, 0.0, None)),
            ({"random_erasing": 0.5, "augmentation": "crop", "seed": 3}, False, ("none", 16, 0.0, None)),
            ({"augmentation": "none"}, True, ("none", 16, 0.0, None)),
            ({"seed": 3}, True, ("published", [16, 20], 0.0, 3)),
            ({"augmentation": "3a", "random_erasing": 0.5}, True, ("3a", None, 0.5, 0)),
            ({"augmentation": "shift"}, True, ("shift", None, 0.0, 0)),
            ({"augmentation": "shift", "resize": 20}, True, ("shift", 20, 0.0, 0)),
            ({"augmentation": "flip", "resize": 20}, True, ("flip", 20, 0.0, 0)),
        ],
    )
    def test_what_it_says(self, changes, augment, expected):
        description = transform_description(self.BASE | changes, augment)
        name, resize, erasing, seed = expected
        assert description == {
            "name": name, "size": 16, "resize": resize, "random_erasing": erasing, "seed": seed
        }  # fmt: skip
        assert json.loads(json.dumps(description)) == description

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="did you mean 'published'"):
            transform_description(self.BASE | {"augmentation": "publishd"}, True)


class TestInADataSet:
    @pytest.fixture
    def root(self, tmp_path):
        return make_folder(tmp_path, {"train/a": 5, "train/b": 4, "val/a": 1, "val/b": 1})

    def images(self, dataset, workers=0, order=None, **options):
        loader = DataLoader(dataset, 2, sampler=order, num_workers=workers, collate_fn=collate, **options)
        return {int(i): image for batch in loader for i, image in zip(batch.ids, batch.images, strict=True)}

    @pytest.mark.parametrize("name", ["published", "rand-m9-mstd0.5-inc1"])
    def test_order_and_workers_do_not_matter(self, root, name):
        dataset = create_dataset({"name": "folder", "root": str(root), "size": 16, "augmentation": name})
        alone = self.images(dataset)
        shuffled = self.images(dataset, workers=2, order=[8, 1, 0, 4, 3, 2, 7, 6, 5])
        assert sorted(alone) == sorted(shuffled) == list(range(9))
        assert all(torch.equal(alone[i], shuffled[i]) for i in alone)

    def test_a_subset_does_not_change_an_image(self, root):
        config = {"name": "folder", "root": str(root), "size": 16}
        full, few = create_dataset(config), create_dataset(config | {"k_shot": 2})
        assert all(torch.equal(sample.image, full[sample.id].image) for sample in (few[i] for i in range(len(few))))

    def test_persistent_workers_see_the_epoch(self, root):
        dataset = create_dataset({"name": "folder", "root": str(root), "size": 16})
        loader = DataLoader(dataset, 9, num_workers=1, persistent_workers=True, collate_fn=collate)
        (first,) = loader
        dataset.set_epoch(1)
        (second,) = loader
        assert not torch.equal(first.images, second.images)
        assert torch.equal(second.images[4], dataset[4].image)
        with pytest.raises(ValueError, match="must not be negative"):
            dataset.set_epoch(-1)
        with pytest.raises(ValueError, match="must be an integer"):
            dataset.set_epoch(0.5)

    def test_spawned_workers_share_the_epoch_and_what_was_skipped(self, root):
        (root / "train/a/a_1.png").write_text("no image")
        config = {"name": "folder", "root": str(root), "size": 16, "check_images": "none", "on_bad_image": "skip"}
        dataset = create_dataset(config)
        loader = DataLoader(
            dataset, 9, num_workers=1, persistent_workers=True, multiprocessing_context="spawn", collate_fn=collate
        )
        (first,) = loader
        dataset.set_epoch(1)
        (second,) = loader
        assert torch.equal(first.ids, second.ids)
        assert not torch.equal(first.images, second.images)
        assert dataset.skipped.tolist() == [1]

    def test_labels_and_ids_are_on_the_cpu_whatever_the_default(self, root):
        config = {"name": "folder", "root": str(root), "size": 16}
        expected = create_dataset(config)
        with torch.device("meta"):
            dataset = create_dataset(config)
            dataset.set_epoch(0)
            batch = collate([dataset[0], dataset[1]])
            assert dataset.skipped.tolist() == []
        assert batch.ids.tolist() == [expected[0].id, expected[1].id]
        assert batch.labels.tolist() == [expected[0].label, expected[1].label]

    def test_only_training_is_augmented(self, root):
        config = {"name": "folder", "root": str(root), "size": 16}
        dataset = create_dataset(config, "val")
        first = dataset[0].image
        dataset.set_epoch(1)
        assert torch.equal(dataset[0].image, first)
        plain = create_dataset(config, "train", augment=False)
        assert torch.equal(plain[0].image, create_dataset(config | {"augmentation": "none"})[0].image)

    def test_a_transform_of_ones_own(self, root):
        config = {"name": "folder", "root": str(root)}
        dataset = create_dataset(config, transform=lambda image: torch.rand(3, 4, 4))
        before = global_state()
        assert torch.equal(dataset[0].image, dataset[0].image)
        assert not torch.equal(dataset[0].image, dataset[1].image)
        assert global_state() == before
        assert create_dataset(config, transform=Preprocessing(8))[0].image.shape == (3, 8, 8)
