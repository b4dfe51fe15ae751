"""Pretrained diffusion models as vision backbones: features by name, fused across blocks and timesteps."""

from difformer._version import __version__
from difformer.backbones import Backbone, UNetBackbone, create_backbone
from difformer.checkpoints import PRESETS, CheckpointError, DownloadError
from difformer.config import UNetConfig
from difformer.diffusion import NoiseSchedule, Schedule, image_noise, q_sample
from difformer.models import AttentionUnavailable, UNet
from difformer.taps import FeatureKey, TapSpec, mirror

__all__ = [
    "PRESETS",
    "AttentionUnavailable",
    "Backbone",
    "CheckpointError",
    "DownloadError",
    "FeatureKey",
    "NoiseSchedule",
    "Schedule",
    "TapSpec",
    "UNet",
    "UNetBackbone",
    "UNetConfig",
    "__version__",
    "create_backbone",
    "image_noise",
    "mirror",
    "q_sample",
]
