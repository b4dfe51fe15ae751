"""What a sweep over blocks and timesteps is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from difformer.config import as_tuple, check_choice, check_different, check_pools
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
from difformer.verbs.probe.recipe import ProbeRecipe

SweepMethod = Literal["ridge", "logistic", "sgd"]


@dataclass(frozen=True)
class SweepRecipe:
    """Linear probes of every block, timestep and pooling.

    Attributes:
        data: which images. Where a holdout is to be the validation split, `holdout` is 0.1 unless given; `k_shot` and
            `percent` limit the images that probes learn from.
        output: folder for the results.
        backbone: the diffusion model the features come from.
        taps: tap names or block numbers; all when empty.
        timesteps: noise timesteps in [0, 1000).
        pools: sides to which maps are averaged.
        seed: of the noise.
        method: ridge (closed form), logistic, or sgd (all settings of a probe trained at once).
        strengths: of the L2 penalty, to choose from for each probe; when null over several decades.
        rates: learning rates of sgd, to choose from likewise.
        criterion: what is best on the validation split: top1, mean_per_class, another of
            `difformer.analysis.METRICS`, or one of your own as package.module:Name.
        validation: split that chooses, and alone does so.
        test: split that the best probe is measured on, once, after the choice; none when null.
        precision: no, bf16 or fp16 for the backbone.
        batch_size: images at once, over all processes; `auto` for as many as go through fastest.
        workers: of each process's data loader.
    """

    data: DataConfig
    output: str = "runs/sweep"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    taps: tuple[int | str, ...] = ()
    timesteps: tuple[int, ...] = (10, 30, 50, 90, 150, 200, 300, 500)
    pools: tuple[int, ...] = (1, 2, 4)
    seed: int = 0
    method: SweepMethod = "ridge"
    strengths: tuple[float, ...] | None = None
    rates: tuple[float, ...] | None = None
    criterion: str = "top1"
    validation: str = "holdout"
    test: str | None = None
    precision: Precision = "no"
    batch_size: BatchSize = 128
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("taps", "timesteps", "pools"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        check_different("timesteps", self.timesteps)
        check_pools(self.pools)
        check_choice("method", self.method, get_args(SweepMethod))
        object.__setattr__(self, "batch_size", as_batch_size("batch_size", self.batch_size))
        check_computing(self)
        if self.validation == "holdout" and not self.data.holdout:
            object.__setattr__(self, "data", replace(self.data, holdout=HOLDOUT))
        # The rest of what can be wrong with them is a probe's.
        alone = self.probe(1, 0, 1)
        for name in ("strengths", "rates"):
            object.__setattr__(self, name, getattr(alone, name))

    def probe(self, tap: int | str, t: int, pool: int, settings: Mapping[str, float] | None = None) -> ProbeRecipe:
        """The recipe of one of its probes, alone.

        Args:
            tap, t, pool: its feature.
            settings: in place of those to choose from.
        """
        settings = settings or {}
        return ProbeRecipe(
            data=self.data,
            output=f"{self.output}/best",
            backbone=self.backbone,
            extractor=ExtractorConfig(taps=(tap,), timesteps=(t,), seed=self.seed),
            pool=pool,
            method=self.method,
            strengths=(settings["l2"],) if "l2" in settings else self.strengths,
            rates=(settings["rate"],) if "rate" in settings else self.rates,
            criterion=self.criterion,
            validation=self.validation,
            test=self.test,
            precision=self.precision,
            batch_size=self.batch_size,
            workers=self.workers,
        )
