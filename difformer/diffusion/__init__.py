"""Diffusion as pure mathematics: schedules, per-image noise, training objectives, samplers."""

from difformer.diffusion.noise import image_noise
from difformer.diffusion.objectives import LossAwareTimesteps, UniformTimesteps, denoising_losses
from difformer.diffusion.samplers import (
    guided,
    interpolate_ddim,
    invert_ddim,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
)
from difformer.diffusion.schedule import NoiseSchedule, Schedule, q_sample
from difformer.diffusion.spacing import Spacing, StridedSchedule, spaced_timesteps

__all__ = [
    "LossAwareTimesteps",
    "NoiseSchedule",
    "Schedule",
    "Spacing",
    "StridedSchedule",
    "UniformTimesteps",
    "denoising_losses",
    "guided",
    "image_noise",
    "interpolate_ddim",
    "invert_ddim",
    "q_sample",
    "sample_ddim",
    "sample_ddpm",
    "sample_dpm_solver",
    "spaced_timesteps",
]
