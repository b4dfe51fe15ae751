"""How accuracy grows with the labels: python examples/few_shot.py FOLDER

Ridge regression on frozen features, from one, two, four, … labelled images of each class. FOLDER holds one folder a
class; a quarter of each is kept for the test. Several draws of the labelled images show how much depends on which
images they are.
"""

import sys

import numpy as np
import torch
from torch.utils.data import DataLoader

from difformer import FeatureExtractor, create_backbone
from difformer.data import collate, create_dataset

folder = sys.argv[1]
backbone = create_backbone("adm32_cifar10")
extractor = FeatureExtractor(backbone, taps=["out01"], timesteps=[50])
base = {"name": "folder", "root": folder, "splits": {"train": "."}, "test_fraction": 0.25, "size": 32}


def read(split, **options):
    """(N, D) features and (N,) labels."""
    images = create_dataset({**base, **options}, split, augment=False)
    parts = [
        (next(iter(extractor(batch.images, batch.ids).values())).mean(dim=(2, 3)), batch.labels)
        for batch in DataLoader(images, batch_size=64, collate_fn=collate)
    ]
    vectors, labels = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return vectors, labels


def ridge(vectors, labels, strength=1.0):
    """Weights (D + 1, C) of a linear layer, in closed form."""
    x = np.c_[vectors, np.ones(len(vectors))]
    targets = np.eye(labels.max() + 1)[labels]
    return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ targets)


test_vectors, test_labels = read("test")
most = np.bincount(read("train")[1]).min()
for k in [2**i for i in range(10) if 2**i <= most]:
    shares = []
    for seed in range(3):
        weights = ridge(*read("train", k_shot=k, seed=seed))
        found = (np.c_[test_vectors, np.ones(len(test_vectors))] @ weights).argmax(axis=1)
        shares.append((found == test_labels).mean())
    print(f"{k:4} images a class: {np.mean(shares):.1%} ± {np.std(shares, ddof=1):.1%}")
