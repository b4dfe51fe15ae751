"""Probes of one feature: linear, MLP and CNN heads (arXiv 2307.08702, section 3)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_positive_integers, as_rate, as_switch
from difformer.heads._inputs import MapSides, check_specs, describe, receive, single_key
from difformer.heads.registry import HEADS
from difformer.taps import FeatureKey, TapSpec


@HEADS.register("linear")
class LinearHead(nn.Module):
    """Adaptive average pooling, then one linear layer. Published: pool 2, no norm; weights are `fcs.0.*`.

    Args:
        specs: the one feature it reads.
        num_classes: length of the logits.
        pool: side of the pooled map.
        batch_norm: normalise the pooled vector first, without learned scale, as linear evaluation often does.

    Raises:
        ValueError: not exactly one feature, or a bad number.
    """

    def __init__(
        self, specs: Mapping[FeatureKey, TapSpec], num_classes: int, *, pool: int = 2, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.specs = check_specs(specs)
        self.learned_from: set[MapSides] = set()
        self.key = single_key(specs)
        self.num_classes = as_positive_integer("num_classes", num_classes)
        self.pool = as_positive_integer("pool", pool)
        batch_norm = as_switch("batch_norm", batch_norm)
        self.arguments: dict[str, Any] = {"pool": self.pool, "batch_norm": batch_norm}
        width = self.specs[self.key].channels * self.pool**2
        self.norm = nn.BatchNorm1d(width, affine=False) if batch_norm else nn.Identity()
        self.fcs = nn.ModuleList([nn.Linear(width, self.num_classes)])

    @property
    def map_sizes(self) -> dict[FeatureKey, Size | None]:
        """The side to which each map is averaged before anything else; see `DifFormerHead.map_sizes`.

        Always `pool`: a smaller map is expanded to as many cells, as in `forward`.
        """
        return {self.key: self.pool}

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Args: features, (B, C, h, w) by key. Returns logits (B, num_classes). Raises ValueError: see `receive`."""
        x = receive(self, features)[self.key].to(next(self.fcs.parameters()).dtype)
        return self.fcs[0](self.norm(F.adaptive_avg_pool2d(x, self.pool).flatten(1)))


@HEADS.register("mlp")
class MLPHead(nn.Module):
    """Adaptive average pooling, then linear layers with ReLU between them; weights are `fcs.{i}.*`.

    Args:
        specs: the one feature it reads.
        num_classes: length of the logits.
        pool: side of the pooled map.
        hidden: widths of the hidden layers. The paper compares several without naming one the default.
        dropout: probability after each hidden layer in training.

    Raises:
        ValueError: not exactly one feature, or a bad number.
    """

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        pool: int = 2,
        hidden: Sequence[int] = (2048,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.specs = check_specs(specs)
        self.learned_from: set[MapSides] = set()
        self.key = single_key(specs)
        self.num_classes = as_positive_integer("num_classes", num_classes)
        self.pool = as_positive_integer("pool", pool)
        self.dropout = as_rate("dropout", dropout)
        hidden = as_positive_integers("hidden", hidden)
        self.arguments: dict[str, Any] = {"pool": self.pool, "hidden": list(hidden), "dropout": self.dropout}
        widths = [self.specs[self.key].channels * self.pool**2, *hidden, self.num_classes]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    @property
    def map_sizes(self) -> dict[FeatureKey, Size | None]:
        """The side to which each map is averaged before anything else; see `DifFormerHead.map_sizes`.

        Always `pool`: a smaller map is expanded to as many cells, as in `forward`.
        """
        return {self.key: self.pool}

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Args: features, (B, C, h, w) by key. Returns logits (B, num_classes). Raises ValueError: see `receive`."""
        x = receive(self, features)[self.key].to(next(self.fcs.parameters()).dtype)
        x = F.adaptive_avg_pool2d(x, self.pool).flatten(1)
        *hidden, last = self.fcs
        for layer in hidden:
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return last(x)


@HEADS.register("cnn")
class CNNHead(nn.Module):
    """3×3 convolutions with batch normalisation and ReLU, global average pooling, then a linear layer.

    The paper's CNN heads were not published as code; the layers here are the usual ones.

    Args:
        specs: the one feature it reads.
        num_classes: length of the logits.
        channels: widths of the convolutions. The first keeps the map's size, each further one halves it.

    Raises:
        ValueError: not exactly one feature, or a bad number.
    """

    def __init__(
        self, specs: Mapping[FeatureKey, TapSpec], num_classes: int, *, channels: Sequence[int] = (512, 512)
    ) -> None:
        super().__init__()
        self.specs = check_specs(specs)
        self.learned_from: set[MapSides] = set()
        self.key = single_key(specs)
        self.num_classes = as_positive_integer("num_classes", num_classes)
        channels = as_positive_integers("channels", channels)
        self.arguments: dict[str, Any] = {"channels": list(channels)}
        widths = [self.specs[self.key].channels, *channels]
        self.convolutions = nn.Sequential()
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            convolution = nn.Conv2d(a, b, 3, stride=2 if i else 1, padding=1, bias=False)
            self.convolutions.append(nn.Sequential(convolution, nn.BatchNorm2d(b), nn.ReLU()))
        self.fc = nn.Linear(widths[-1], self.num_classes)

    @property
    def map_sizes(self) -> dict[FeatureKey, Size | None]:
        """None for its map: convolutions read it unpooled. See `DifFormerHead.map_sizes`."""
        return {self.key: None}

    __repr__ = describe

    def forward(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """Args: features, (B, C, h, w) by key. Returns logits (B, num_classes). Raises ValueError: see `receive`."""
        x = self.convolutions(receive(self, features)[self.key].to(self.fc.weight.dtype))
        return self.fc(x.mean(dim=(2, 3)))
