"""The support-vector machine that the quickstart compares with."""

import numpy as np
import pytest
from PIL import Image

from difformer.data import create_dataset
from difformer.verbs.quickstart import pixels
from difformer.verbs.quickstart.pixels import classify_pixels


def write_images(root, counts, *, colour=True):
    """Images of a class each brightness, blue or grey."""
    for label, count in enumerate(counts):
        (root / f"class{label}").mkdir(parents=True)
        for number in range(count):
            level = 80 * label + number
            image = Image.new("RGB", (8, 8), (0, 0, level) if colour else (level, level, level))
            image.save(root / f"class{label}" / f"{number}.png")


def open_images(root):
    return [create_dataset({"name": "folder", "root": str(root), "size": 8}, split) for split in ("train", "test")]


# A class of one image; and hardly more images than are learned from.
@pytest.mark.parametrize("counts", [(8, 8, 1), (4, 4, 3)])
def test_a_share_of_each_class_is_learned_from(counts, tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MOST_IMAGES", 10)
    write_images(tmp_path / "train", counts)
    write_images(tmp_path / "test", (2, 2, 2))
    found = classify_pixels(*open_images(tmp_path))
    assert found.metrics.confusion.sum() == 6
    assert found.metrics.top1 == 1
    # About as many as may be, for each class has a whole number, and at least one.
    assert abs(found.images - 10) <= 1


@pytest.mark.parametrize(("train", "test"), [(False, True), (True, False)])
def test_grey_and_coloured_images_go_together(train, test, tmp_path):
    write_images(tmp_path / "train", (3, 3), colour=train)
    write_images(tmp_path / "test", (1, 2), colour=test)
    metrics = classify_pixels(*open_images(tmp_path)).metrics
    assert np.array(metrics.confusion).sum() == 3
