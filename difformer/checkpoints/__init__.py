"""Weight files: presets, reading, verifying, downloading, and our own self-describing format."""

from difformer.checkpoints.download import DownloadError, download
from difformer.checkpoints.presets import PRESETS, Preset
from difformer.checkpoints.sources import describe, locate, read_backbone
from difformer.checkpoints.store import StoredBackbone, write_backbone
from difformer.checkpoints.weights import CheckpointError, load_strictly, read_weights, weights_digest

__all__ = [
    "PRESETS",
    "CheckpointError",
    "DownloadError",
    "Preset",
    "StoredBackbone",
    "describe",
    "download",
    "load_strictly",
    "locate",
    "read_backbone",
    "read_weights",
    "weights_digest",
    "write_backbone",
]
