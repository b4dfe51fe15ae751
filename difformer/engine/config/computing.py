"""How an evaluation, a probe or a study of features computes: without training a network, and else as training does."""

from typing import Any, Protocol, get_args

from difformer.config import as_integer
from difformer.data import DataConfig
from difformer.engine.config.training import (
    BackboneConfig,
    Precision,
    Recipe,
    TrainingConfig,
    check_choice,
    check_range,
)


class Computing(Protocol):
    """What such recipes have in common."""

    @property
    def data(self) -> DataConfig:
        """Which images."""
        ...

    @property
    def backbone(self) -> BackboneConfig:
        """The diffusion model."""
        ...

    @property
    def precision(self) -> Precision:
        """Of the computation."""
        ...

    @property
    def workers(self) -> int:
        """Of each process's data loader."""
        ...


def check_computing(recipe: Computing) -> None:
    """Raises ValueError for an unknown precision or a negative number of workers."""
    check_choice("precision", recipe.precision, get_args(Precision))
    check_range("workers", as_integer("workers", recipe.workers), lambda x: x >= 0, "at least 0")


def training_like(recipe: Computing, **sections: Any) -> Recipe:
    """The recipe of a training run that computes in the same way; `sections` are others of its."""
    training = TrainingConfig(precision=recipe.precision, workers=recipe.workers)
    return Recipe(data=recipe.data, backbone=recipe.backbone, training=training, **sections)
