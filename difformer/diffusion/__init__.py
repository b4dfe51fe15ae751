"""Diffusion as pure mathematics: schedules, per-image noise, training objectives, samplers."""

from difformer.diffusion.noise import image_noise
from difformer.diffusion.objectives import LossAwareTimesteps, UniformTimesteps, denoising_losses
from difformer.diffusion.samplers import guided, invert_ddim, sample_ddim, sample_ddpm
from difformer.diffusion.schedule import NoiseSchedule, Schedule, q_sample

__all__ = [
    "LossAwareTimesteps",
    "NoiseSchedule",
    "Schedule",
    "UniformTimesteps",
    "denoising_losses",
    "guided",
    "image_noise",
    "invert_ddim",
    "q_sample",
    "sample_ddim",
    "sample_ddpm",
]
