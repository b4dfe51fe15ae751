"""Features of images in a plain loop: python examples/features_loop.py FOLDER

FOLDER holds one folder a class. The features go to features.npz.
"""

import sys

import numpy as np
import torch
from torch.utils.data import DataLoader

from difformer import FeatureExtractor, create_backbone
from difformer.data import collate, create_dataset

folder = sys.argv[1]
backbone = create_backbone("adm32_cifar10")
extractor = FeatureExtractor(backbone, taps=["mid", "out01"], timesteps=[50, 200])

# Split "train" of a folder without splits is the folder itself.
config = {"name": "folder", "root": folder, "splits": {"train": "."}, "size": 32}
images = create_dataset(config, "train", augment=False)
loader = DataLoader(images, batch_size=32, collate_fn=collate)

vectors, labels = {key: [] for key in extractor.specs}, []
for batch in loader:
    # The ids stay with the images: their noise, and so their features, do not depend on the batch.
    for key, maps in extractor(batch.images, batch.ids).items():
        vectors[key].append(maps.mean(dim=(2, 3)))  # (B, C, h, w) to (B, C)
    labels.append(batch.labels)

arrays = {f"{key.tap}_t{key.t}": torch.cat(parts).numpy() for key, parts in vectors.items()}
np.savez("features.npz", labels=torch.cat(labels).numpy(), **arrays)
for name, array in arrays.items():
    print(name, array.shape)
