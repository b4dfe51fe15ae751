"""Segmentation of images: its task, losses of maps of logits, and windows over large images."""

from difformer.maps import resize_logits
from difformer.tasks.segmentation.losses import lovasz_softmax, pixel_cross_entropy, soft_dice
from difformer.tasks.segmentation.windows import Windows, average_windows, windows_of

__all__ = [
    "Windows",
    "average_windows",
    "lovasz_softmax",
    "pixel_cross_entropy",
    "resize_logits",
    "soft_dice",
    "windows_of",
]
