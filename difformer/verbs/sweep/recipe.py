"""The recipe of a sweep over blocks and timesteps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from difformer.config import as_positive_integer, as_tuple, check_choice, check_different, check_pools
from difformer.config.reading import ADDED_LATER
from difformer.engine.config.recipe import ExtractorConfig, ReadingConfig
from difformer.verbs.probe.recipe import FeatureRecipe, ProbeRecipe

SweepMethod = Literal["ridge", "logistic", "sgd"]


@dataclass(frozen=True)
class SweepRecipe(FeatureRecipe):
    """Linear probes of every block, timestep and pooling.

    Attributes:
        data: which images. If a holdout is the validation split, `holdout` is 0.1 unless given; `k_shot` and `percent`
            limit the images that probes learn from.
        extractor: what the diffusion model is conditioned on.
        taps: tap names or block numbers; all when empty.
        timesteps: noise timesteps in [0, 1000).
        pools: sides to which maps are averaged.
        task: classification, or segmentation: then a probe classifies single pixels.
        pixels: of an image, drawn from those that are labelled, for segmentation.
        seed: of the noise, and of the pixels.
        method: ridge (closed form), logistic, or sgd (all settings of a probe trained at once).
        strengths: of the L2 penalty, to choose from for each probe; several decades when null.
        rates: learning rates of sgd, to choose from for each probe.
        criterion: metric to choose by on the validation split: top1, mean_per_class, miou, another of
            `difformer.analysis.METRICS`, or your own as package.module:Name. When null top1, and miou for segmentation.
        validation: the only split by which features and settings are chosen.
        test: split that the best probe is measured on, once, after the choice; none when null.
    """

    output: str = "runs/sweep"
    extractor: ReadingConfig = field(default_factory=ReadingConfig, metadata=ADDED_LATER)
    taps: tuple[int | str, ...] = ()
    timesteps: tuple[int, ...] = (10, 30, 50, 90, 150, 200, 300, 500)
    pools: tuple[int, ...] = (1, 2, 4)
    task: Literal["classification", "segmentation"] = field(default="classification", metadata=ADDED_LATER)
    pixels: int = field(default=256, metadata=ADDED_LATER)
    seed: int = 0
    method: SweepMethod = "ridge"
    strengths: tuple[float, ...] | None = None
    rates: tuple[float, ...] | None = None
    criterion: str | None = None
    validation: str = "holdout"
    test: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("taps", "timesteps", "pools"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        check_different("timesteps", self.timesteps)
        check_pools(self.pools)
        check_choice("method", self.method, get_args(SweepMethod))
        check_choice("task", self.task, ("classification", "segmentation"))
        object.__setattr__(self, "pixels", as_positive_integer("pixels", self.pixels))
        if self.criterion is None:
            object.__setattr__(self, "criterion", "top1" if self.task == "classification" else "miou")
        if self.task == "segmentation":
            # There is nothing to average: each pixel is read where it lies.
            object.__setattr__(self, "pools", (1,))
            if self.test is not None:
                raise ValueError(
                    "test is for classification; for segmentation train the recommended recipe with evaluation.test"
                )
            if self.data.fit != "stretch":
                raise ValueError(f"a sweep for segmentation reads images with data.fit: stretch, got {self.data.fit}")
        # A probe's recipe checks the other values, and sets the same holdout.
        alone = self.probe(1, 0, 1)
        for name in ("data", "strengths", "rates"):
            object.__setattr__(self, name, getattr(alone, name))

    def probe(self, tap: int | str, t: int, pool: int, settings: Mapping[str, float] | None = None) -> ProbeRecipe:
        """The recipe of one of its probes, alone.

        Args:
            tap, t, pool: its feature.
            settings: of the probe, in place of those to choose from.
        """
        settings = settings or {}
        return ProbeRecipe(
            data=self.data,
            output=f"{self.output}/best",
            backbone=self.backbone,
            extractor=ExtractorConfig(
                taps=(tap,), timesteps=(t,), seed=self.seed, conditioning=self.extractor.conditioning
            ),
            pool=pool,
            method=self.method,
            strengths=(settings["l2"],) if "l2" in settings else self.strengths,
            rates=(settings["rate"],) if "rate" in settings else self.rates,
            criterion=self.criterion or "top1",
            validation=self.validation,
            test=self.test,
            precision=self.precision,
            batch_size=self.batch_size,
            workers=self.workers,
        )
