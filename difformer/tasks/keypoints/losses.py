"""The loss of heat maps, one number an image."""

import torch
from torch import Tensor


def heatmap_mse(heatmaps: Tensor, targets: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error over the pixels of an image's visible points, in float32 at least.

    Args:
        heatmaps: (B, P, h, w) of any floating-point type, one map a point.
        targets: (B, P, h, w), such as Gaussians around the points; those of points that are not visible are not read.
        visible: (B, P) truth values.

    Returns:
        (B,) not negative; 0 for an image without a visible point.

    Raises:
        ValueError: wrong shapes or types.
    """
    if not heatmaps.dtype.is_floating_point or heatmaps.ndim != 4 or not heatmaps.shape[2:].numel():
        raise ValueError(
            f"heatmaps must be floating-point numbers (B, P, h, w), got {heatmaps.dtype} {tuple(heatmaps.shape)}"
        )
    if not targets.dtype.is_floating_point or targets.shape != heatmaps.shape:
        raise ValueError(
            f"targets must be floating-point numbers of the heat maps' shape {tuple(heatmaps.shape)}, got "
            f"{targets.dtype} {tuple(targets.shape)}"
        )
    if visible.dtype != torch.bool or visible.shape != heatmaps.shape[:2]:
        raise ValueError(
            f"visible must be truth values of shape {tuple(heatmaps.shape[:2])}, got {visible.dtype} "
            f"{tuple(visible.shape)}"
        )
    wide = torch.promote_types(heatmaps.dtype, torch.float32)
    # Where nothing is known, the difference is 0 and so is its gradient, whatever stands in the maps.
    shown = visible[:, :, None, None]
    difference = torch.where(shown, heatmaps, 0).to(wide) - torch.where(shown, targets, 0).to(wide)
    errors = difference.square().mean(dim=(2, 3))
    return errors.sum(dim=1) / visible.sum(dim=1).clamp(min=1)
