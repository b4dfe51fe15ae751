"""What evaluations, probes and studies of features have in common: they compute features, and train no network."""

from dataclasses import dataclass, field
from typing import get_args

from difformer.config import as_integer
from difformer.data import DataConfig
from difformer.engine.recipes.training import (
    BackboneConfig,
    BatchSize,
    Precision,
    Recipe,
    TrainingConfig,
    as_batch_size,
    check_choice,
    check_range,
)


@dataclass(frozen=True, kw_only=True)
class FeatureRecipe:
    """Which images go through which network, and how.

    Attributes:
        data: which images.
        backbone: the diffusion model the features come from.
        precision: no, bf16 or fp16.
        batch_size: images at once, over all processes; `auto` for as many as go through fastest.
        workers: of each process's data loader.

    Raises:
        ValueError: a value out of range.
    """

    data: DataConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    precision: Precision = "no"
    batch_size: BatchSize = 128
    workers: int = 2

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, get_args(Precision))
        object.__setattr__(self, "batch_size", as_batch_size("batch_size", self.batch_size))
        check_range("workers", as_integer("workers", self.workers), lambda x: x >= 0, "at least 0")

    def as_training(self) -> Recipe:
        """The recipe of a run that computes in the same way."""
        training = TrainingConfig(precision=self.precision, workers=self.workers)
        return Recipe(data=self.data, backbone=self.backbone, training=training)
