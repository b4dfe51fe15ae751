"""Landmarks in images."""

from difformer.tasks.keypoints.losses import heatmap_mse

__all__ = ["heatmap_mse"]
