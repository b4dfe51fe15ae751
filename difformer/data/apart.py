"""Whether the splits of a run have images in common."""

from collections.abc import Mapping
from itertools import combinations
from logging import getLogger

import numpy as np

from difformer.data.dataset import ImageDataset
from difformer.data.source import DataError

_log = getLogger(__name__)


def check_apart(images: Mapping[str, ImageDataset]) -> None:
    """Warns where two splits have images in common.

    Only images with the same file name and size are read, so this is cheap where there are none; see
    `ImageDataset.also_in`.

    Args:
        images: the splits by name; the first is the one that is learned from.

    Raises:
        DataError: all images of a split are among those that are learned from, or the other way round.
        ImageError: an image cannot be read.
    """
    learned = next(iter(images), "")
    for one, other in combinations(images, 2):
        shared = images[other].also_in(images[one])
        count, total = int(shared.sum()), len(shared)
        if not count:
            continue
        # An image may stand several times in a split, as photos of several faces do.
        if one == learned and (count == total or images[one].also_in(images[other]).all()):
            inner, outer = (other, one) if count == total else (one, other)
            raise DataError(
                f"all {len(images[inner])} images of {inner} are images of {outer} too, so {other} would say nothing "
                f"of new images. Name other images with data.splits, where {other} is a key, or set a part of {one} "
                "aside: with data.test_fraction, which makes the split test, or data.holdout, which makes the split "
                "holdout"
            )
        names = images[other].names
        example = "" if names is None else f", such as {names[int(np.argmax(shared))]}"
        _log.warning(
            "%d of %d images of %s are images of %s too%s: results on them are better than on new images; remove them "
            "from one of the two splits", count, total, other, one, example,
        )  # fmt: skip
