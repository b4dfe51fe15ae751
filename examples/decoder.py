"""Features as maps for a decoder from another library: python examples/decoder.py FOLDER

`backbone.as_encoder` gives a list of maps and a `feature_info`, as timm's models do with `features_only=True`. Here the
maps go to torchvision's feature pyramid and a convolution that would segment 21 classes. FOLDER holds a folder a class.
"""

import sys

import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision.ops import FeaturePyramidNetwork

from difformer import create_backbone
from difformer.data import collate, create_dataset

backbone = create_backbone("adm32_cifar10")
encoder = backbone.as_encoder(taps=["in03", "out03", "out05"], t=50)
print("channels", encoder.feature_info.channels(), "reduction", encoder.feature_info.reduction())


class Segmenter(nn.Module):
    """A pyramid over the maps, the finest first, and a layer for each pixel."""

    def __init__(self, encoder, num_classes):
        super().__init__()
        self.encoder = encoder
        self.pyramid = FeaturePyramidNetwork(encoder.feature_info.channels(), out_channels=32)
        self.classify = nn.Conv2d(32, num_classes, 1)

    def forward(self, images, ids):
        maps = dict(zip("abc", self.encoder(images, ids), strict=True))
        finest = self.pyramid(maps)["a"]
        return F.interpolate(self.classify(finest), size=images.shape[2:], mode="bilinear")


folder = sys.argv[1]
images = create_dataset(
    {"name": "folder", "root": folder, "splits": {"train": "."}, "size": 32}, "train", augment=False
)
batch = next(iter(DataLoader(images, batch_size=2, collate_fn=collate)))
model = Segmenter(encoder, num_classes=21)
scores = model(batch.images, batch.ids)
scores.mean().backward()  # gradients reach the pyramid; the backbone is frozen
print(tuple(scores.shape), sum(p.grad is not None for p in model.parameters()), "tensors learn")
