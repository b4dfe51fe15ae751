"""Which block and timestep classify best: python examples/block_and_timestep.py FOLDER

All blocks of a timestep come from one pass. Choices are made on held-out images. `difformer sweep` does this with more
probes, intervals and pictures. FOLDER holds one folder a class.
"""

import sys

import torch
from torch.utils.data import DataLoader

from difformer import FeatureExtractor, FeatureKey, create_backbone
from difformer.analysis import accuracy, ridge_path
from difformer.data import collate, create_dataset

folder, timesteps = sys.argv[1], [10, 50, 150, 400]
backbone = create_backbone("adm32_cifar10")
extractor = FeatureExtractor(backbone, taps=list(backbone.taps), timesteps=timesteps)
config = {"name": "folder", "root": folder, "splits": {"train": "."}, "holdout": 0.25, "size": 32}


def read(split):
    """(N, D) vectors by feature, and (N,) labels."""
    images = create_dataset(config, split, augment=False)
    vectors, labels = {key: [] for key in extractor.specs}, []
    for batch in DataLoader(images, batch_size=64, collate_fn=collate):
        for key, maps in extractor(batch.images, batch.ids).items():
            vectors[key].append(maps.mean(dim=(2, 3)))
        labels.append(batch.labels)
    return {key: torch.cat(parts) for key, parts in vectors.items()}, torch.cat(labels)


train, train_labels = read("train")
held, held_labels = read("holdout")
classes = int(train_labels.max()) + 1

print("block   " + "".join(f"t = {t:<6}" for t in timesteps))
for tap in backbone.taps:
    shares = []
    for t in timesteps:
        key = FeatureKey(tap, t)
        (fit,) = ridge_path(train[key], train_labels, classes, strengths=[0.1])
        shares.append(accuracy(fit.model.logits(held[key]), held_labels))
    print(f"{tap:8}" + "".join(f"{share:<10.1%}" for share in shares))
