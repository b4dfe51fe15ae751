"""Data sets: images that are made, not read; with a class (the brighter half), and with a number (the brightness)."""

import io

import numpy as np
from PIL import Image

from difformer.data import Source

SIDE, IMAGES = 40, {"train": 24, "test": 12}


def halves(config, split):
    """Greyish noise whose left or right half is brighter."""
    labels = np.arange(IMAGES[split]) % 2
    return Source(f"halves, {split}", labels, ("left", "right"), _Images(labels, split))


class _Images:
    """The encoded image of an index; picklable, since data workers get a copy."""

    def __init__(self, labels, split):
        self._labels, self._seed = labels, sorted(IMAGES).index(split)

    def __call__(self, index):
        pixels = np.random.default_rng([self._seed, index]).integers(60, 120, (SIDE, SIDE, 3))
        half = slice(0, SIDE // 2) if self._labels[index] == 0 else slice(SIDE // 2, SIDE)
        pixels[:, half] += 100
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        return file.getvalue()


def shades(config, split):
    """Grey images, whose brightness in [0, 1] is to be predicted in place of a class."""
    brightness = np.random.default_rng(sorted(IMAGES).index(split)).uniform(size=(IMAGES[split], 1))
    return Source(f"shades, {split}", [], (), _Shades(brightness), targets=brightness)


class _Shades:
    def __init__(self, brightness):
        self._brightness = brightness

    def __call__(self, index):
        file = io.BytesIO()
        Image.new("L", (SIDE, SIDE), round(255 * float(self._brightness[index, 0]))).save(file, "PNG")
        return file.getvalue()
