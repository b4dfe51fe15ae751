from . import (  # noqa: F401
    analysis,
    annotations,
    backbones,
    checkpoints,
    classifier,
    config,
    data,
    diffusion,
    distillation,
    features,
    heads,
    models,
    report,
    tasks,
)
from ._version import __version__
from .allocator import keep_freed_memory
from .backbones import Backbone, UNetBackbone, create_backbone
from .checkpoints import PRESETS, CheckpointError, DownloadError
from .classifier import DiffusionClassifier, load_classifier, save_classifier
from .config import UNetConfig
from .diffusion import NoiseSchedule, Schedule, image_noise, q_sample
from .features import FeatureExtractor, FeedbackExtractor
from .heads import AttentionHead, CNNHead, DifFormerHead, LinearHead, MLPHead
from .models import AttentionUnavailable, UNet
from .taps import FeatureKey, TapSpec, mirror

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
