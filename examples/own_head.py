"""A head of your own: python examples/own_head.py FOLDER

The covariance of channels in place of their mean. In a recipe it would be `head.name: my_package.heads:CovarianceHead`.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from difformer import DiffusionClassifier, FeatureExtractor, create_backbone
from difformer.data import collate, create_dataset


class CovarianceHead(nn.Module):
    """Covariance between `channels` projections of each map, then a linear layer."""

    def __init__(self, specs, num_classes, *, channels=16):
        super().__init__()
        self.specs = dict(specs)  # the features that are read, with channels and sizes
        self.num_classes = num_classes
        self.arguments = {"channels": channels}  # a saved file brings them back
        self.projections = nn.ModuleList(nn.Conv2d(spec.channels, channels, 1) for spec in self.specs.values())
        self.fc = nn.Linear(len(self.specs) * channels**2, num_classes)

    @property
    def map_sizes(self):
        """Maps are read as they are, not averaged beforehand."""
        return dict.fromkeys(self.specs)

    def forward(self, features):
        parts = []
        for key, project in zip(self.specs, self.projections, strict=True):
            x = project(features[key]).flatten(2)  # (B, channels, h · w)
            x = x - x.mean(dim=2, keepdim=True)
            parts.append((x @ x.transpose(1, 2) / x.shape[2]).flatten(1))
        return self.fc(F.normalize(torch.cat(parts, dim=1)))


folder = sys.argv[1]
torch.manual_seed(0)
train = create_dataset({"name": "folder", "root": folder, "splits": {"train": "."}, "size": 32}, "train", augment=False)
extractor = FeatureExtractor(create_backbone("adm32_cifar10"), taps=["out01", "out03"], timesteps=[50])
head = CovarianceHead(extractor.specs, len(train.class_names))
classifier = DiffusionClassifier(extractor, head, class_names=train.class_names)

optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
for epoch in range(3):
    for images, labels, ids in DataLoader(train, batch_size=32, shuffle=True, collate_fn=collate):
        loss = F.cross_entropy(classifier(images, ids), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")
