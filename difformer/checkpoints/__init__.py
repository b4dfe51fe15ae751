"""Weight files: presets, reading, verifying, downloading, and our own self-describing format."""

from difformer.checkpoints.download import DownloadError, download
from difformer.checkpoints.hub import locate_on_hub, push_folder
from difformer.checkpoints.presets import PRESETS, Preset
from difformer.checkpoints.shipped import ShippedFile, shipped, verify_shipped
from difformer.checkpoints.sources import describe, locate, open_weights, read_backbone
from difformer.checkpoints.store import StoredBackbone, write_backbone
from difformer.checkpoints.weights import (
    CheckpointError,
    UnderspecifiedError,
    check_fits,
    contiguous_state,
    load_strictly,
    read_pickle,
    read_weights,
    weights_digest,
    write_weights,
)

__all__ = [
    "PRESETS",
    "CheckpointError",
    "DownloadError",
    "Preset",
    "ShippedFile",
    "StoredBackbone",
    "UnderspecifiedError",
    "check_fits",
    "contiguous_state",
    "describe",
    "download",
    "load_strictly",
    "locate",
    "locate_on_hub",
    "open_weights",
    "push_folder",
    "read_backbone",
    "read_pickle",
    "read_weights",
    "shipped",
    "verify_shipped",
    "weights_digest",
    "write_backbone",
    "write_weights",
]
