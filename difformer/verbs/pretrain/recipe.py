"""The recipe for training a denoiser."""

from dataclasses import dataclass, field
from typing import Literal

from difformer.config import UNetConfig, as_integer, as_positive_integer, as_switch, as_tuple, check_range, shown
from difformer.data import DataConfig
from difformer.engine.config.recipe import LoopConfig, OptimizerConfig, ScheduleConfig
from difformer.verbs.pretrain.denoising import ObjectiveConfig


@dataclass(frozen=True)
class SamplesConfig:
    """Pictures of samples from the network during training.

    Attributes:
        every: epochs between pictures; 0 for none before the end.
        count: images in a picture.
        steps: of DDIM.
        eta: of DDIM. 1 adds fresh noise at each step, which corrects the errors that a network makes at high noise
            early in training; 0 adds none.
        seed: of the samples' noise.
    """

    every: int = 0
    count: int = 36
    steps: int = 50
    eta: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("samples.eta", self.eta, lambda x: 0 <= x <= 1, "in [0, 1]")
        for name in ("count", "steps"):
            as_positive_integer(f"samples.{name}", getattr(self, name))
        for name in ("every", "seed"):
            value = as_integer(f"samples.{name}", getattr(self, name))
            check_range(f"samples.{name}", value, lambda x: x >= 0, "at least 0")


# As in the training of ADM (Dhariwal & Nichol 2021).
_OPTIMIZER = OptimizerConfig(name="adamw", lr=1e-4)
_LOOP = LoopConfig(ema=0.9999)


@dataclass(frozen=True)
class PretrainRecipe:
    """The training of a denoiser.

    Attributes:
        data: which images; their labels are used by class-conditional networks only.
        model: the network's architecture.
        name: of the weights.
        output: folder of the run.
        noise: the noise schedule, linear or cosine.
        num_timesteps: of the schedule.
        objective: what it learns.
        optimizer: how the weights are updated.
        schedule: how the learning rate changes.
        training: length, batch size and precision.
        samples: pictures during training.
        compile: build the network with torch.compile, if there is a C++ compiler: a quarter to a half faster on a
            CPU, after a minute or two at the start.
        trackers: Accelerate's.
    """

    data: DataConfig
    model: UNetConfig
    name: str = "denoiser"
    output: str = "runs/denoiser"
    noise: Literal["linear", "cosine"] = "linear"
    num_timesteps: int = 1000
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = _OPTIMIZER
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: LoopConfig = _LOOP
    samples: SamplesConfig = SamplesConfig()
    compile: bool = False
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trackers", as_tuple("trackers", self.trackers))
        as_switch("compile", self.compile)
        if self.noise not in ("linear", "cosine"):
            raise ValueError(f"noise must be linear or cosine, got {self.noise!r}")
        # Checked here, since it would otherwise fail at the end of training.
        if self.samples.steps > as_positive_integer("num_timesteps", self.num_timesteps):
            raise ValueError(f"samples.steps must be at most num_timesteps, {self.num_timesteps}")
        expected = self.model.in_channels * (2 if self.objective.name == "hybrid" else 1)
        if self.model.out_channels != expected:
            raise ValueError(
                f"model.out_channels must be {expected} for objective.name {self.objective.name}, "
                f"got {self.model.out_channels}"
            )
        if self.objective.label_dropout and self.model.num_classes is None:
            raise ValueError("objective.label_dropout needs model.num_classes: the classes and one for the null label")
        if self.data.size != self.model.image_size:
            raise ValueError(
                f"data.size, {shown(self.data.size)}, must be model.image_size, {self.model.image_size}: a network is "
                "trained on square images, and can then be read at any size, [h, w] included"
            )
