"""A head: generalised-mean pooling of each map (Radenović et al. 2018), then a linear layer."""

import torch
from torch import nn

from difformer.heads import HEADS


@HEADS.register("own_gem")
class GeMHead(nn.Module):
    """Reads any number of features; `power` 1 is average pooling, and larger ones come close to the maximum."""

    def __init__(self, specs, num_classes, *, power=3.0):
        super().__init__()
        self.specs = dict(specs)
        self.num_classes = num_classes
        self.arguments = {"power": power}
        self.power = power
        self.fc = nn.Linear(sum(spec.channels for spec in specs.values()), num_classes)

    @property
    def map_sizes(self):
        return dict.fromkeys(self.specs)

    def forward(self, features):
        maps = [features[key].clamp(min=1e-6) for key in self.specs]
        pooled = [x.pow(self.power).mean(dim=(2, 3)).pow(1 / self.power) for x in maps]
        return self.fc(torch.cat(pooled, dim=1))
