"""The recipe of a probe."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from difformer.analysis import METRICS
from difformer.config import as_positive_integer, check_choice
from difformer.data import DataConfig
from difformer.engine.config.evaluation import HOLDOUT
from difformer.engine.config.recipe import (
    BackboneConfig,
    BatchSize,
    ExtractorConfig,
    Precision,
    as_batch_size,
    check_computing,
)

ProbeMethod = Literal["knn", "logistic", "ridge", "sgd"]


@dataclass(frozen=True)
class FeatureRecipe:
    """What the recipes of `difformer probe`, `sweep` and `select` have in common.

    Attributes:
        data: which images.
        output: folder for the results.
        backbone: the diffusion model the features come from.
        precision: no, bf16 or fp16 for the backbone.
        batch_size: images at once, over all processes; `auto` for the fastest number.
        workers: of each process's data loader.
    """

    data: DataConfig
    output: str
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    # Keyword-only, so that they come after the fields of subclasses.
    precision: Precision = field(default="no", kw_only=True)
    batch_size: BatchSize = field(default=128, kw_only=True)
    workers: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        check_computing(self)
        object.__setattr__(self, "batch_size", as_batch_size("batch_size", self.batch_size))


@dataclass(frozen=True)
class ProbeRecipe(FeatureRecipe):
    """A classifier on pooled features, fitted for a grid of settings.

    Attributes:
        data: which images. If a holdout is the validation split, `holdout` is 0.1 unless given.
        extractor: which features are read.
        pool: side to which each feature map is averaged.
        normalize: scale each feature to length 1 before joining them, so that none outweighs the others.
        method: knn, logistic, ridge or sgd (linear probes trained by gradient descent).
        ks: numbers of neighbours to choose from; when null 10, 20, 100 and 200, as far as there are images.
        temperatures: of the neighbours' votes, to choose from.
        strengths: of the L2 penalty of logistic, ridge and sgd, to choose from; several decades when null.
        rates: learning rates of sgd, to choose from.
        criterion: metric to choose by on the validation split: top1, mean_per_class, another of
            `difformer.analysis.METRICS`, or your own as package.module:Name.
        validation: the only split by which settings are chosen.
        test: split that is measured once, after the choice; none when null.
        refit: after the choice, fit on training and validation images together; for knn, both are neighbours. It has no
            effect if `data` has a label subset (k_shot, percent or list_file). Such a subset limits `train` alone: the
            probe is fitted on these labels only, but the whole validation split chooses its settings.
    """

    output: str = "runs/probe"
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    pool: int = 1
    normalize: bool = False
    method: ProbeMethod = "knn"
    ks: tuple[int, ...] | None = None
    temperatures: tuple[float, ...] = (0.07,)
    strengths: tuple[float, ...] | None = None
    rates: tuple[float, ...] | None = None
    criterion: str = "top1"
    validation: str = "holdout"
    test: str | None = "test"
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pool", as_positive_integer("pool", self.pool))
        check_choice("method", self.method, get_args(ProbeMethod))
        METRICS.check(self.criterion, "criterion")
        if "train" in (self.validation, self.test):
            raise ValueError("train cannot be validation or test: the probe is fitted on it")
        if self.validation == self.test:
            raise ValueError(
                f"test: {self.test} would be measured on the images that choose; choose on another split, such as "
                "holdout"
            )
        if "holdout" in (self.validation, self.test) and not self.data.holdout:
            object.__setattr__(self, "data", replace(self.data, holdout=HOLDOUT))
        if self.ks is not None:
            object.__setattr__(self, "ks", tuple(as_positive_integer("ks", k) for k in self.ks))
        for name in ("temperatures", "strengths", "rates"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        for name in ("ks", "temperatures", "strengths", "rates"):
            values = getattr(self, name)
            if values is not None and not (values and len(set(values)) == len(values) and min(values) > 0):
                raise ValueError(f"{name} must be one or more different positive numbers, got {list(values)}")
        if self.extractor.feedback_taps:
            raise ValueError(
                "a probe trains nothing, so DifFeed's feedback layers would stay as they are initialised; leave out "
                "extractor.feedback_taps, or train a classifier"
            )

    @property
    def refits(self) -> bool:
        """Whether the probe is fitted on validation images too after the choice; never with a label subset."""
        return self.refit and not self.data.has_label_subset
