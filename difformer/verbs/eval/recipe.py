"""The recipe of an evaluation of a classifier."""

from dataclasses import dataclass, field
from typing import get_args

from difformer.config import as_names, as_tuple, check_choice
from difformer.data import DataConfig
from difformer.engine.config.recipe import (
    BackboneConfig,
    BatchSize,
    FeatureSource,
    Precision,
    as_batch_size,
    check_computing,
)
from difformer.features.planning import CacheConfig


@dataclass(frozen=True)
class EvaluationRecipe:
    """The evaluation of a classifier.

    Attributes:
        classifier: folder of a run, classifier file, or hf://owner/name, fetched where `backbone.download` allows it.
        data: which images.
        split: which of their splits.
        output: folder for the results; `eval-SPLIT` in the run's folder when null.
        backbone: the diffusion model that the classifier was trained on.
        features: `live`, or `cached` on the disk (not for DifFeed).
        cache: where and how features are kept.
        precision: no, bf16 or fp16 for head and backbone.
        batch_size: images at once, over all processes; `auto` for as many as go through fastest.
        workers: of each process's data loader.
        metrics: further ones: names of `difformer.analysis.METRICS` or of the classifier's task, or your own as
            package.module:Name.
        trust: packages whose code may run, for a classifier with a head, task, data set or backbone of one of them.
    """

    classifier: str
    data: DataConfig
    split: str = "test"
    output: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    features: FeatureSource = "live"
    cache: CacheConfig = field(default_factory=CacheConfig)
    precision: Precision = "no"
    batch_size: BatchSize = 128
    workers: int = 2
    metrics: tuple[str, ...] = ()
    trust: tuple[str, ...] | str | None = ()

    def __post_init__(self) -> None:
        check_choice("features", self.features, get_args(FeatureSource))
        check_computing(self)
        object.__setattr__(self, "metrics", as_tuple("metrics", self.metrics))
        for metric in self.metrics:
            if not isinstance(metric, str):
                raise ValueError(f"metrics must be names, got {metric!r}")
        object.__setattr__(self, "trust", as_names("trust", self.trust))
        object.__setattr__(self, "batch_size", as_batch_size("batch_size", self.batch_size))
