"""Images from a backbone, each a function of the settings and its number alone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from difformer.backbones import DenoisingBackbone, device_of
from difformer.checkpoints import PRESETS
from difformer.config import as_integer, as_positive_integer, check_choice, check_different, check_range, sides
from difformer.diffusion import (
    NoiseSchedule,
    Spacing,
    guided,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    spaced_timesteps,
)
from difformer.diffusion.samplers import Denoiser, Variance

Method = Literal["ddpm", "ddim", "dpm++"]
# Of images, which is what backbones that work on pixels generate.
CHANNELS = 3


@dataclass(frozen=True)
class Sampling:
    """How images are generated: all that they depend on beside the weights.

    Attributes:
        method: ddpm (ancestral), ddim, or dpm++ (DPM-Solver++).
        steps: timesteps to visit.
        spacing: which ones, see `spaced_timesteps`; when None, log_snr for dpm++ and even for the others.
        eta: noise of ddim, in [0, 1]; None stands for 0.
        variance: of ddpm's noise, small or large, for networks that do not learn it; None stands for small.
        classes: whose images to generate in turn, image n of class n modulo their number; all when None, without a null
            label.
        guidance: of classifier-free guidance; 0 for none.
        seed: of the noise.

    Raises:
        ValueError: values out of range, or that do not go together.
    """

    method: Method = "ddpm"
    steps: int = 50
    spacing: Spacing | None = None
    eta: float | None = None
    variance: Variance | None = None
    classes: tuple[int, ...] | None = None
    guidance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        as_positive_integer("steps", self.steps)
        as_integer("seed", self.seed)
        check_choice("spacing", self.spacing, get_args(Spacing), optional=True)
        check_choice("variance", self.variance, get_args(Variance), optional=True)
        check_range("guidance", self.guidance, lambda x: x >= 0, "of at least 0")
        if self.eta is not None:
            check_range("eta", self.eta, lambda x: 0 <= x <= 1, "in [0, 1]")
            if self.method != "ddim":
                raise ValueError("eta is the noise of ddim; give --method ddim with it, or leave it out")
        if self.variance is not None and self.method != "ddpm":
            raise ValueError("variance is that of ddpm's noise; give --method ddpm with it, or leave it out")
        if self.spacing is None:
            object.__setattr__(self, "spacing", "log_snr" if self.method == "dpm++" else "even")
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(as_integer("classes", label) for label in self.classes))
            check_different("classes", self.classes)

    def check(self, backbone: DenoisingBackbone) -> None:
        """Checks before any image is generated that a backbone can generate them.

        Raises:
            ValueError: it does not generate, has no such timesteps or classes, or no null label for guidance.
        """
        schedule = backbone.schedule
        if backbone.image_size is None or not isinstance(schedule, NoiseSchedule):
            raise ValueError(f"{backbone.name} does not generate: it needs an image_size and a NoiseSchedule")
        assert self.spacing is not None
        spaced_timesteps(schedule, self.steps, self.spacing)
        learned = backbone.describe().get("config") or {}
        if self.variance is not None and learned.get("out_channels") == 2 * CHANNELS:
            raise ValueError(f"{backbone.name} learned the variance of its noise; leave out --variance")
        known = backbone.conditioning.get("y")
        if known is None:
            if self.classes is not None or self.guidance:
                raise ValueError(f"{backbone.name} is not class-conditional; leave out --classes and --guidance")
            return
        if self.guidance:
            if _has_null_label(backbone) is False:
                raise ValueError(
                    f"{backbone.name} was trained without a null label, which guidance needs: pretrain with "
                    "objective.label_dropout, or leave out --guidance"
                )
            known -= 1
            if known < 1:
                raise ValueError(f"{backbone.name} has one class, which is the null label; leave out --guidance")
        for label in self.classes or ():
            if not 0 <= label < known:
                raise ValueError(f"classes must lie in [0, {known}), got {label}")

    def labels(self, backbone: DenoisingBackbone, numbers: Sequence[int]) -> Tensor | None:
        """The classes (B,) int64 of the images with some numbers; None where the backbone has none."""
        known = backbone.conditioning.get("y")
        if known is None:
            return None
        classes = self.classes or range(known - bool(self.guidance or _has_null_label(backbone)))
        return torch.tensor([classes[number % len(classes)] for number in numbers], dtype=torch.int64)


def generate(
    backbone: DenoisingBackbone,
    sampling: Sampling,
    numbers: Sequence[int],
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Generates the images with some numbers, at once. The others do not matter to an image, except for rounding.

    Args:
        backbone: on the device where it runs.
        sampling: which its `check` has accepted for the backbone.
        numbers: (B,) of the images.
        on_step: called after each step.

    Returns:
        (B, H, W, 3) uint8 on the CPU, truncated as guided-diffusion's image_sample.py does.
    """
    assert isinstance(backbone.schedule, NoiseSchedule)
    assert backbone.image_size is not None
    assert sampling.spacing is not None
    shape, device = (len(numbers), CHANNELS, *sides(backbone.image_size)), device_of(backbone)
    labels = sampling.labels(backbone, numbers)
    denoiser = _denoiser(backbone, None if labels is None else labels.to(device), sampling.guidance)
    steps, spacing, seed = sampling.steps, sampling.spacing, sampling.seed
    if sampling.method == "ddpm":
        images = sample_ddpm(
            denoiser, backbone.schedule, shape,
            steps=steps, spacing=spacing, seed=seed, ids=numbers, device=device, on_step=on_step,
            variance=sampling.variance,
        )  # fmt: skip
    elif sampling.method == "ddim":
        images = sample_ddim(
            denoiser, backbone.schedule, shape,
            steps=steps, spacing=spacing, seed=seed, ids=numbers, device=device, on_step=on_step,
            eta=sampling.eta or 0.0,
        )  # fmt: skip
    else:
        images = sample_dpm_solver(
            denoiser, backbone.schedule, shape,
            steps=steps, spacing=spacing, seed=seed, ids=numbers, device=device, on_step=on_step,
        )  # fmt: skip
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _has_null_label(backbone: DenoisingBackbone) -> bool | None:
    """Whether the last class is the null label, as far as the weights say how they were trained."""
    if backbone.name in PRESETS:
        return False
    try:
        objective = json.loads(getattr(backbone, "provenance", {})["recipe"])["objective"]
        return bool(objective["label_dropout"])
    except (KeyError, TypeError, ValueError):
        return None


def _denoiser(backbone: DenoisingBackbone, labels: Tensor | None, guidance: float) -> Denoiser:
    if labels is None:
        return backbone.forward

    def conditional(x_t: Tensor, t: Tensor) -> Tensor:
        return backbone.forward(x_t, t, y=labels)

    # The last class is the null label.
    null = torch.full_like(labels, backbone.conditioning["y"] - 1)

    def unconditional(x_t: Tensor, t: Tensor) -> Tensor:
        return backbone.forward(x_t, t, y=null)

    return guided(conditional, unconditional, guidance, CHANNELS) if guidance else conditional
