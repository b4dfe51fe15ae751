"""Noise: the forward process and the per-image noise that feeds it. Pure mathematics."""

from difformer.diffusion.noise import image_noise
from difformer.diffusion.schedule import NoiseSchedule, Schedule, q_sample

__all__ = ["NoiseSchedule", "Schedule", "image_noise", "q_sample"]
