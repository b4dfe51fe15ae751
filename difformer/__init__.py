"""Pretrained diffusion models as vision backbones: features by name, fused across blocks and timesteps."""

import difformer.annotations  # noqa: F401 - its readers register themselves
from difformer._version import __version__
from difformer.allocator import keep_freed_memory
from difformer.backbones import Backbone, UNetBackbone, create_backbone
from difformer.checkpoints import PRESETS, CheckpointError, DownloadError
from difformer.classifier import DiffusionClassifier, load_classifier, save_classifier
from difformer.config import UNetConfig
from difformer.diffusion import NoiseSchedule, Schedule, image_noise, q_sample
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.heads import AttentionHead, CNNHead, DifFormerHead, LinearHead, MLPHead
from difformer.models import AttentionUnavailable, UNet
from difformer.taps import FeatureKey, TapSpec, mirror

__all__ = [
    "PRESETS",
    "AttentionHead",
    "AttentionUnavailable",
    "Backbone",
    "CNNHead",
    "CheckpointError",
    "DifFormerHead",
    "DiffusionClassifier",
    "DownloadError",
    "FeatureExtractor",
    "FeatureKey",
    "FeedbackExtractor",
    "LinearHead",
    "MLPHead",
    "NoiseSchedule",
    "Schedule",
    "TapSpec",
    "UNet",
    "UNetBackbone",
    "UNetConfig",
    "__version__",
    "create_backbone",
    "image_noise",
    "keep_freed_memory",
    "load_classifier",
    "mirror",
    "q_sample",
    "save_classifier",
]
