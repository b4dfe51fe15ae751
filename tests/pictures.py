"""Pictures whose colours tell the place, and a backbone that sees colours: what corresponds is known."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from difformer.diffusion import NoiseSchedule
from difformer.taps import TapSpec


class Colours:
    """A backbone whose features are the image's colours, averaged over squares of 2 pixels."""

    name, digest, dtype, image_size, multiple, conditioning = "colours", "0" * 64, torch.float32, 64, 2, {}
    taps = {"mean": TapSpec("mean", 1, 3, 32, 1)}  # noqa: RUF012 - as the protocol has it
    schedule = NoiseSchedule.linear(1000)

    def encode(self, images):
        return images

    def forward_taps(self, x_t, t, taps):
        return {tap: F.avg_pool2d(x_t, 2) for tap in taps}

    def describe(self):
        return {"name": self.name}


def chart(width=96, height=64):
    """A picture whose colour tells the place: red grows to the right, green downwards."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    red, green = np.meshgrid(x, y)
    return Image.fromarray((255 * np.stack([red, green, np.full_like(red, 0.8)], axis=-1)).round().astype(np.uint8))


def save(image, path, orientation=None):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path
