"""Heads: features to logits, maps of logits, boxes or landmarks."""

from difformer.heads.dense_difformer import DenseDifFormerHead
from difformer.heads.detection import DetectionHead, Detections, paste_masks
from difformer.heads.difformer import AttentionHead, DifFormerHead
from difformer.heads.heatmap import HeatmapHead
from difformer.heads.linear_pixel import LinearPixelHead
from difformer.heads.pixel_mlp import PixelMLPEnsemble
from difformer.heads.probes import CNNHead, LinearHead, MLPHead
from difformer.heads.pyramid import Pyramid
from difformer.heads.registry import HEADS, OUTPUTS, Head, heads_that_give, what_it_gives
from difformer.heads.upernet import UperNetHead

__all__ = [
    "HEADS",
    "OUTPUTS",
    "AttentionHead",
    "CNNHead",
    "DenseDifFormerHead",
    "DetectionHead",
    "Detections",
    "DifFormerHead",
    "Head",
    "HeatmapHead",
    "LinearHead",
    "LinearPixelHead",
    "MLPHead",
    "PixelMLPEnsemble",
    "Pyramid",
    "UperNetHead",
    "heads_that_give",
    "paste_masks",
    "what_it_gives",
]
