"""The recipe of a training run, as `train/configs/*.yaml` and the command line give it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from difformer.analysis import METRICS
from difformer.backbones import ADM, FAMILIES
from difformer.config import (
    as_integer,
    as_positive_integer,
    as_switch,
    as_tuple,
    check_choice,
    check_different,
    check_range,
)
from difformer.config.reading import ADDED_LATER
from difformer.data import DataConfig
from difformer.features.conditioning import LABEL, as_conditioning
from difformer.features.dtypes import DtypeName
from difformer.features.planning import CacheConfig
from difformer.heads import HEADS, heads_that_give
from difformer.tasks import TASKS

FeatureSource = Literal["live", "cached"]
Precision = Literal["no", "bf16", "fp16"]
ScheduleName = Literal["step", "cosine", "constant"]
# For images that pass through a network without training it.
BatchSize = int | Literal["auto"]


def as_batch_size(name: str, value: Any) -> BatchSize:
    """A positive integer, or `auto`; raises ValueError when it is anything else."""
    try:
        return "auto" if value == "auto" else as_positive_integer(name, value)
    except ValueError as error:
        raise ValueError(f"{name} must be a positive integer or auto, got {value!r}") from error


def check_computing(recipe: Any) -> None:
    """Raises ValueError for an unknown `precision` or negative `workers`, in recipes that train no network."""
    check_choice("precision", recipe.precision, get_args(Precision))
    check_range("workers", as_integer("workers", recipe.workers), lambda x: x >= 0, "at least 0")


def _as_arguments(name: str, value: Any) -> dict[str, Any]:
    """Arguments by name; raises ValueError when they are anything else, such as null."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold keys and values, got {value!r}; leave it out where there are none")
    return dict(value)


@dataclass(frozen=True)
class BackboneConfig:
    """The diffusion model the features come from.

    Attributes:
        name: preset, weight file or hf://owner/name.
        folder: where named weights are, instead of the usual folders.
        download: whether weights that are not on this machine may be fetched.
        dtype: of the convolutions; by default that of `training.precision`.
        attention: implementation: auto, xformers, sdpa or math.
        gradient_checkpointing: save DifFeed's memory at the cost of time; with `auto` only if a training step would
            not fit otherwise.
        compile: build its passes with torch.compile, which takes half a minute or more for the first images of each
            shape; without a compiler, it runs uncompiled.
        family: the kind of network: adm (guided-diffusion's U-Nets), pixels (none: a baseline), or your own as
            package.module:Name.
    """

    name: str = "adm256_uncond"
    folder: str | None = None
    download: bool = False
    dtype: DtypeName | None = None
    attention: str = "auto"
    gradient_checkpointing: bool | Literal["auto"] = False
    compile: bool = False
    family: str | None = field(default=None, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        if self.family is not None:
            FAMILIES.check(self.family, "backbone.family")
        if self.family == ADM:
            # Not written down, so that recipes compare equal with those of versions that had no family.
            object.__setattr__(self, "family", None)
        check_choice("backbone.dtype", self.dtype, get_args(DtypeName), optional=True)
        for name in ("download", "compile"):
            as_switch(f"backbone.{name}", getattr(self, name))
        if not isinstance(self.gradient_checkpointing, bool) and self.gradient_checkpointing != "auto":
            found = self.gradient_checkpointing
            raise ValueError(f"backbone.gradient_checkpointing must be true, false or auto, got {found!r}")


@dataclass(frozen=True)
class ReadingConfig:
    """What a diffusion model is conditioned on, in recipes that look at many of its features.

    Attributes:
        conditioning: of a class-conditional network, a class number for all images, `y: 0`, or `y: label` for each
            image's own.
    """

    conditioning: Mapping[str, int | str] = field(default_factory=dict, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditioning", as_conditioning("extractor.conditioning", self.conditioning))


@dataclass(frozen=True)
class ExtractorConfig:
    """Which features are read.

    Attributes:
        taps: tap names, or numbers of the backbone's blocks; with feedback, those of the second pass. When empty, the
            block as deep as block 24 of ADM-256, `out04`, which the literature probes.
        timesteps: noise timesteps of the backbone's schedule. When empty, one that suits the size of its images: 150 of
            1000 from 256 pixels on, as in the literature, and 50 for 32.
        feedback_taps: decoder taps that are fed back into the encoder (DifFeed).
        first_pass_taps: with feedback, taps to read in the first pass as well.
        seed: of the noise.
        draws: noise draws per timestep, over which features are averaged.
        clean: add no noise.
        chunk_size: maximum number of noisy images to pass at once.
        norm: of the feedback layers: batch, group or none.
        gate: start from the features without feedback.
        conditioning: of a class-conditional network, a class number for all images, `y: 0`, or `y: label` for each
            image's own.
    """

    taps: tuple[int | str, ...] = ()
    timesteps: tuple[int, ...] = ()
    feedback_taps: tuple[int | str, ...] = ()
    first_pass_taps: tuple[int | str, ...] = ()
    seed: int = 0
    draws: int = 1
    clean: bool = False
    chunk_size: int | None = None
    norm: str = "batch"
    gate: bool = False
    conditioning: Mapping[str, int | str] = field(default_factory=dict, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditioning", as_conditioning("extractor.conditioning", self.conditioning))
        for name in ("taps", "timesteps", "feedback_taps", "first_pass_taps"):
            object.__setattr__(self, name, as_tuple(f"extractor.{name}", getattr(self, name)))
        if self.feedback_taps and self.chunk_size is not None:
            raise ValueError("extractor.chunk_size is not for DifFeed; use training.accumulation to save memory")
        only_feedback = {"first_pass_taps": (), "norm": "batch", "gate": False}
        given = [name for name, default in only_feedback.items() if getattr(self, name) != default]
        if given and not self.feedback_taps:
            raise ValueError(f"extractor.{given[0]} is for DifFeed; give extractor.feedback_taps with it")


@dataclass(frozen=True)
class HeadConfig:
    """Which head reads the features.

    Attributes:
        name: linear, mlp, cnn, attention or difformer; for maps of classes upernet, linear_pixel, pixel_mlp or
            dense_difformer, for boxes detection, for landmarks heatmap; or your own as package.module:Name.
        arguments: the head's own, such as pool, width or variant.
    """

    name: str = "linear"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", _as_arguments("head.arguments", self.arguments))


@dataclass(frozen=True)
class TaskConfig:
    """What the outputs of the head mean.

    Attributes:
        name: classification, segmentation, detection, keypoints, or your own as package.module:Name.
        arguments: the task's own.
    """

    name: str = "classification"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TASKS.check(self.name, "task.name")
        object.__setattr__(self, "arguments", _as_arguments("task.arguments", self.arguments))
        if self.classifies and "label_smoothing" in self.arguments:
            raise ValueError("task.arguments.label_smoothing is for training only; give training.label_smoothing")

    @property
    def built_in(self) -> bool:
        """Whether it is a task of the package."""
        return ":" not in self.name

    @property
    def classifies(self) -> bool:
        """Whether labels are classes, which can be smoothed and mixed."""
        return self.name == "classification"


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights are updated.

    Attributes:
        name: sgd (plain momentum), adamw, lars, or any other optimiser of timm.
        lr: learning rate, above 0.
        momentum: of SGD and LARS, in [0, 1).
        weight_decay: at least 0; not applied to biases and norms.
        clip_norm: maximum norm of the gradient.
    """

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_range("optimizer.lr", self.lr, lambda x: x > 0, "above 0")
        check_range("optimizer.momentum", self.momentum, lambda x: 0 <= x < 1, "in [0, 1)")
        check_range("optimizer.weight_decay", self.weight_decay, lambda x: x >= 0, "at least 0")
        if self.clip_norm is not None:
            check_range("optimizer.clip_norm", self.clip_norm, lambda x: x > 0, "above 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes.

    Attributes:
        name: step, cosine (per step, to `min_lr`) or constant.
        step_epochs: epochs between steps down.
        milestones: epochs after which the steps down are instead, such as [40, 55], where they are not equally far
            apart.
        gamma: factor of a step.
        warmup_epochs: epochs in which the rate rises linearly from almost 0; counted in `training.epochs`.
        min_lr: where the cosine ends.
    """

    name: ScheduleName = "constant"
    step_epochs: float = 7.0
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    milestones: tuple[float, ...] = field(default=(), metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        check_choice("schedule.name", self.name, get_args(ScheduleName))
        object.__setattr__(self, "milestones", as_tuple("schedule.milestones", self.milestones))
        for epoch in self.milestones:
            check_range("schedule.milestones", epoch, lambda x: x > 0, "above 0")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones must be in order, each later, got {list(self.milestones)}")
        if self.milestones and self.name != "step":
            raise ValueError(f"schedule.milestones are for the schedule step, not {self.name}; leave them out")
        check_range("schedule.step_epochs", self.step_epochs, lambda x: x > 0, "above 0")
        check_range("schedule.gamma", self.gamma, lambda x: 0 < x <= 1, "in (0, 1]")
        check_range("schedule.warmup_epochs", self.warmup_epochs, lambda x: x >= 0, "at least 0")
        check_range("schedule.min_lr", self.min_lr, lambda x: x >= 0, "at least 0")


@dataclass(frozen=True)
class LoopConfig:
    """Length, batch size, precision and saving of a training run.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step, over all processes together: the result does not depend on their number.
        accumulation: parts into which a process's share of a batch is divided, to save memory.
        precision: no, bf16 or fp16.
        ema: decay of the moving average of the weights, which is then evaluated and kept; none when left out. At step
            n, counted from 0, it is at most (1 + n) / (10 + n).
        seed: of initial weights, order and dropout.
        workers: of each process's data loader.
        save_minutes: maximum minutes of work between two saves of the state, which is always saved after an epoch.
    """

    epochs: int = 28
    batch_size: int = 128
    accumulation: int = 1
    precision: Precision = "no"
    ema: float | None = None
    seed: int = 0
    workers: int = 2
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation"):
            object.__setattr__(self, name, as_positive_integer(f"training.{name}", getattr(self, name)))
        check_choice("training.precision", self.precision, get_args(Precision))
        check_range("training.save_minutes", self.save_minutes, lambda x: x >= 0, "at least 0")
        for name in ("seed", "workers"):
            value = as_integer(f"training.{name}", getattr(self, name))
            check_range(f"training.{name}", value, lambda x: x >= 0, "at least 0")
        if self.ema is not None:
            check_range("training.ema", self.ema, lambda x: 0 < x < 1, "in (0, 1)")


@dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    """Length, batch size and precision of training, and what keeps the head from overfitting.

    Attributes:
        label_smoothing: in [0, 1).
        mixup, cutmix: timm's alphas; 0 for none. Images are mixed within a process's share of a batch.
        sync_batch_norm: on GPUs, batch statistics over all processes.
        early_stopping: evaluations without improvement after which to stop.
        least_steps: minimum number of steps; where the epochs have fewer, as with few labels, epochs are added.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    sync_batch_norm: bool = True
    early_stopping: int | None = None
    least_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        as_switch("training.sync_batch_norm", self.sync_batch_norm)
        for name in ("early_stopping", "least_steps"):
            value = getattr(self, name)
            if value == 0:
                raise ValueError(f"training.{name} must be a positive integer, or null for none, got 0")
            if value is not None:
                as_positive_integer(f"training.{name}", value)
        check_range("training.label_smoothing", self.label_smoothing, lambda x: 0 <= x < 1, "in [0, 1)")
        for name in ("mixup", "cutmix"):
            check_range(f"training.{name}", getattr(self, name), lambda x: x >= 0, "at least 0")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how the classifier that is kept is chosen.

    Attributes:
        validation: split that is evaluated during training, such as `holdout` with `data.holdout`; none when null.
        every: epochs between evaluations.
        select: keep the classifier of the `best` evaluation, or the `last`.
        criterion: what decides which is best: top1, mean_per_class, loss, another of `difformer.analysis.METRICS`, or
            your own as package.module:Name. For tasks other than classification: one of the task's metrics, the first
            when left out.
        test: split that is evaluated once, at the end, with the classifier that was kept.
        batch_size: images at once, over all processes; that of training when null; `auto` for the fastest size.
    """

    validation: str | None = None
    every: int = 1
    select: Literal["best", "last"] = "last"
    criterion: str = "top1"
    test: str | None = None
    batch_size: BatchSize | None = None

    def __post_init__(self) -> None:
        as_positive_integer("evaluation.every", self.every)
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", as_batch_size("evaluation.batch_size", self.batch_size))
        check_choice("evaluation.select", self.select, ("best", "last"))
        if self.select == "best" and self.validation is None:
            raise ValueError("evaluation.select: best needs evaluation.validation, such as holdout with data.holdout")
        if self.validation is not None and self.select == "best" and self.validation == self.test:
            raise ValueError(
                f"evaluation.test: {self.test} would be measured on the images that choose the classifier; "
                "choose on another split, such as holdout with data.holdout"
            )


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        output: folder of the run.
        init: folder of a run, or a classifier, whose weights to start from instead of fresh ones. It must have the
            same classes, backbone and features, the same head and task with the same arguments, and the same
            conditioning. DifFeed may start from a classifier without feedback; with `extractor.gate: true` it then
            starts where that ended. A run that has begun no longer needs it.
        backbone: the diffusion model the features come from.
        extractor: which features are read.
        head: which head reads them.
        task: what its outputs mean.
        data: which images.
        features: `live`, or `cached` on the disk (not for DifFeed).
        cache: where, and how many views.
        optimizer: how the weights are updated.
        schedule: how the learning rate changes.
        training: length, batch size and precision.
        evaluation: what is measured.
        trackers: Accelerate's: tensorboard, wandb, ….
        seeds: train once for each of these numbers, in `seedN` of the output. A seed takes the place of `training.seed`
            and, where only some labels are used, of `data.seed`. Empty for a single run.
    """

    data: DataConfig
    output: str = "runs/classifier"
    init: str | None = None
    backbone: BackboneConfig = BackboneConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    head: HeadConfig = HeadConfig()
    task: TaskConfig = field(default=TaskConfig(), metadata=ADDED_LATER)
    features: FeatureSource = "live"
    cache: CacheConfig = field(default_factory=CacheConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: tuple[str, ...] = ("tensorboard",)
    seeds: tuple[int, ...] = field(default=(), metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        # Of a task of one's own, what it reads is not known before it is imported.
        reads = getattr(TASKS.find(self.task.name), "reads", "logits") if ":" not in self.task.name else None
        HEADS.check(self.head.name, "head.name", listed=None if reads is None else heads_that_give(reads))
        object.__setattr__(self, "seeds", as_tuple("seeds", self.seeds))
        if self.seeds:
            check_different("seeds", self.seeds)
        for seed in self.seeds:
            check_range("seeds", as_integer("seeds", seed), lambda x: x >= 0, "at least 0")
        check_choice("features", self.features, get_args(FeatureSource))
        if self.task.classifies:
            METRICS.check(self.evaluation.criterion, "evaluation.criterion")
        for name in ("label_smoothing", "mixup", "cutmix"):
            if getattr(self.training, name) and not self.task.classifies:
                raise ValueError(
                    f"training.{name} is for the task classification, but the task here is {self.task.name}; leave it "
                    "at 0"
                )
        if self.init is not None and (not isinstance(self.init, str) or not self.init):
            raise ValueError(f"init must name a run or a classifier, got {self.init!r}; leave it out for fresh weights")
        object.__setattr__(self, "trackers", as_tuple("trackers", self.trackers))
        if self.features == "cached" and self.extractor.feedback_taps:
            raise ValueError(
                "DifFeed trains feedback layers whose output passes through the backbone again, so its features cannot "
                "be cached after the first pass; use features: live"
            )
        if self.features == "cached" and self.task.built_in and not self.task.classifies:
            raise ValueError(
                f"features: cached is not for the task {self.task.name}, whose maps take megabytes an image; use "
                "features: live"
            )
        if self.features == "cached" and (self.training.mixup or self.training.cutmix):
            raise ValueError("training.mixup and training.cutmix mix images, and a cache has none; use features: live")
        if (self.training.mixup or self.training.cutmix) and LABEL in self.extractor.conditioning.values():
            raise ValueError(
                "training.mixup and training.cutmix mix images, which then have no single label for "
                "extractor.conditioning; leave them out, or give a class number"
            )
        if self.evaluation.validation == "holdout" and not self.data.holdout:
            raise ValueError(
                "evaluation.validation: holdout needs data.holdout, the fraction to set aside, such as 0.1"
            )
        if self.training.early_stopping is not None and self.evaluation.validation is None:
            raise ValueError("training.early_stopping needs evaluation.validation")

    @property
    def own_modules(self) -> list[str]:
        """The modules that it names, whose code may run: of the user's own head or task."""
        return [name.partition(":")[0] for name in (self.head.name, self.task.name) if ":" in name]

    @property
    def own_packages(self) -> list[str]:
        """The packages that must be trusted to use its results: of the user's own head, task, data set or family of
        backbones."""
        names = (self.head.name, self.task.name, self.data.name, self.backbone.family or ADM)
        return list(dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in names if ":" in name))

    def lengthened(self, images: int) -> "Recipe":
        """The recipe for a number of training images, with enough epochs for `training.least_steps`.

        Where epochs are added, other values that are counted in epochs grow by the same factor.
        """
        steps_an_epoch = max(1, math.ceil(images / self.training.batch_size))
        epochs = math.ceil((self.training.least_steps or 0) / steps_an_epoch)
        if epochs <= self.training.epochs:
            return self
        factor = epochs / self.training.epochs
        schedule = replace(
            self.schedule,
            warmup_epochs=self.schedule.warmup_epochs * factor,
            step_epochs=self.schedule.step_epochs * factor,
            milestones=tuple(epoch * factor for epoch in self.schedule.milestones),
        )
        return replace(
            self,
            schedule=schedule,
            training=replace(self.training, epochs=epochs),
            evaluation=replace(self.evaluation, every=int(self.evaluation.every * factor)),
        )
