"""Training transforms: what they do, and that their randomness depends on (seed, epoch, id) alone."""

import random

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
)
from difformer.data.transforms import Isolated

NAMES = ["published", "crop", "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "3a", "original"]
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
    ("name", "message"), [("publishd", "did you mean 'published'"), ("xyzq", "known are none"), ("rand-q9", "timm")]
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
