"""Landmarks in images: their task, the loss of heat maps, and the points that these mean."""

from difformer.tasks.keypoints.heatmaps import decode_heatmaps, heatmap_targets
from difformer.tasks.keypoints.losses import heatmap_mse

__all__ = ["decode_heatmaps", "heatmap_mse", "heatmap_targets"]
