"""How well features tell images apart without labels: scatter between images against scatter of views of one image."""

import torch
from torch import Tensor

from difformer.analysis._inputs import Array, as_matrix

# Share of the mean variance within images that is added to every direction, for features that do not vary at all.
_SHRINKAGE = 1e-3
# Share of the features' mean square: variances below it are rounding.
_ROUNDING = 1e-28


def view_criterion(views: Array, *, shrinkage: float = _SHRINKAGE) -> float:
    """The label-free criterion of ICR: 1 / (1 + mean λ), λ the generalised eigenvalues of (S_s, S_x).

    S_s is the scatter of images' means over their views, S_x that of views around their image's mean; both are
    covariances. A small value means that views of an image lie close together, compared with different images. Blocks
    and timesteps are compared by it; the smallest is best.

    Args:
        views: (N, V, D) finite: V noisy and augmented views of each of N images, N and V at least 2.
        shrinkage: share of the mean within-image variance that is added to each direction of S_x.

    Returns:
        In (0, 1]; 1 when the images do not differ, nor their views.

    Raises:
        ValueError: wrong shape, type or values, or images that differ although the views of each are all the same.
    """
    if not isinstance(views, Tensor):
        views = torch.from_numpy(views)
    if views.ndim != 3 or views.shape[0] < 2 or views.shape[1] < 2:
        raise ValueError(f"views must be of shape (N, V, D), N and V at least 2, got {tuple(views.shape)}")
    if shrinkage <= 0:
        raise ValueError(f"shrinkage must be above 0, got {shrinkage}")
    count, repeats, width = views.shape
    rows = as_matrix("views", views.reshape(count * repeats, width)).double().view(count, repeats, width)
    means = rows.mean(dim=1)
    between = _covariance(means - means.mean(dim=0), count - 1)
    within = _covariance((rows - means[:, None]).flatten(0, 1), count * (repeats - 1))
    rounding = _ROUNDING * rows.square().mean()
    if within.diagonal().mean() <= rounding:
        if between.diagonal().mean() <= rounding:
            return 1.0
        raise ValueError(
            "the views of each image are all the same, so there is no scatter within images to compare with; give "
            "views with different noise or augmentation"
        )
    # The scatter of means of few views includes a part of the scatter within images.
    between = between - within / repeats
    ridge = shrinkage * within.diagonal().mean()
    # L⁻¹ M L⁻ᵀ has the generalised eigenvalues of (M, L Lᵀ).
    factor = torch.linalg.cholesky(within + ridge * torch.eye(width, dtype=within.dtype, device=within.device))
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    eigenvalues = torch.linalg.eigvalsh(whitened).clamp(min=0)
    return float(1 / (1 + eigenvalues.mean()))


def _covariance(rows: Tensor, degrees: int) -> Tensor:
    return rows.T @ rows / degrees
