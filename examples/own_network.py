"""A network of your own as a backbone: python examples/own_network.py FOLDER

Anything with taps, a noise schedule, `encode` and `forward_taps`, which says what it is, is a backbone. Here it is a
small convolutional denoiser with random weights. FOLDER holds one folder a class.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from difformer import FeatureExtractor, NoiseSchedule, TapSpec
from difformer.data import collate, create_dataset


class SmallDenoiser(nn.Module):
    """Two convolutions, which are told how much noise there is by one more channel."""

    def __init__(self):
        super().__init__()
        # What tells it from others, and what it takes.
        self.name, self.digest, self.dtype = "small denoiser", "random weights", torch.float32
        self.image_size, self.multiple, self.conditioning = 32, 2, {}
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.schedule = NoiseSchedule.linear(1000)
        self.taps = {
            "full": TapSpec("full", 1, channels=8, size=32, flops=2 * 8 * 4 * 9 * 32 * 32),
            "half": TapSpec("half", 2, channels=8, size=16, flops=2 * (8 * 4 * 9 * 32 * 32 + 8 * 8 * 9 * 16 * 16)),
        }

    def encode(self, images):
        """The network works on pixels."""
        return images

    def forward_taps(self, x_t, t, taps, *, inject=None):
        """Maps by tap, and nothing after the deepest."""
        level = (t / 1000).view(-1, 1, 1, 1).expand(-1, 1, *x_t.shape[2:])
        maps = {"full": F.silu(self.first(torch.cat([x_t, level], dim=1)))}
        if "half" in taps:
            maps["half"] = F.silu(self.second(maps["full"]))
        return {tap: maps[tap] for tap in taps}

    def describe(self):
        """What files and caches keep of it; `family` says where it is found again."""
        family = "own_network:SmallDenoiser"
        schedule = self.schedule.to_dict()
        return {"family": family, "name": self.name, "digest": self.digest, "config": None, "schedule": schedule}


folder = sys.argv[1]
images = create_dataset(
    {"name": "folder", "root": folder, "splits": {"train": "."}, "size": 32}, "train", augment=False
)
extractor = FeatureExtractor(SmallDenoiser().eval(), taps=["full", "half"], timesteps=[50])
batch = next(iter(DataLoader(images, batch_size=16, collate_fn=collate)))
for key, maps in extractor(batch.images, batch.ids).items():
    print(f"{key.tap:5}", tuple(maps.shape))
