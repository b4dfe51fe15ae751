"""Principal components of feature maps, to look at: similar features get similar colours."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from difformer.analysis._inputs import Array, as_matrix
from difformer.config import as_positive_integer

# Percentiles that become 0 and 1, so that a few extreme positions do not reduce the contrast of the others.
_DARKEST, _BRIGHTEST = 2, 98


@dataclass(frozen=True)
class PrincipalComponents:
    """Rows in the directions in which they vary most.

    Attributes:
        scores: (M, k) float64, centred; 0 throughout for components that the rows do not have.
        explained: (k,) float64 in [0, 1], falling: shares of the total variance; 0 when there is none.
    """

    scores: Tensor
    explained: Tensor


def principal_components(rows: Array, components: int) -> PrincipalComponents:
    """Principal component analysis in float64, on the CPU.

    The sign of a component is such that its score of greatest magnitude is positive, so that signs, too, do not
    change when the columns of the rows are rotated.

    Args:
        rows: (M, C) finite.
        components: k, at least 1; may exceed C.

    Raises:
        ValueError: wrong shape, type or values.
    """
    count = as_positive_integer("components", components)
    matrix = as_matrix("rows", rows).cpu().double()
    centred = matrix - matrix.mean(dim=0)
    left, lengths, _ = torch.linalg.svd(centred, full_matrices=False)
    # What rounding leaves of constant or dependent columns is not a component.
    noise = torch.finfo(torch.float64).eps * max(matrix.shape) * torch.linalg.matrix_norm(matrix)
    lengths = torch.where(lengths > noise, lengths, 0)
    found = min(count, len(lengths))
    scores = matrix.new_zeros(len(matrix), count)
    scores[:, :found] = left[:, :found] * lengths[:found]
    furthest = scores.abs().argmax(dim=0, keepdim=True)
    scores *= torch.where(scores.gather(0, furthest) < 0, -1.0, 1.0)
    variances = matrix.new_zeros(count)
    variances[:found] = lengths[:found].square()
    return PrincipalComponents(scores, variances / lengths.square().sum().clamp(min=torch.finfo(torch.float64).tiny))


def pca_maps(features: Tensor, components: int = 3) -> Tensor:
    """Principal components of feature maps, over all positions of all images together.

    Each component is scaled by itself: its 2nd percentile becomes 0, its 98th 1, and what is outside is clipped. So
    three of them are a colour for each position, the same in all images. Signs are those of `principal_components`.

    Args:
        features: (N, C, h, w) finite, of any floating-point type.
        components: k.

    Returns:
        (N, h, w, k) float32 in [0, 1], on the CPU; 0.5 throughout for components that the features do not have.

    Raises:
        ValueError: wrong shape, type or values.
    """
    if features.ndim != 4:
        raise ValueError(f"features must be of shape (N, C, h, w), got {tuple(features.shape)}")
    positions = features.permute(0, 2, 3, 1)
    scores = principal_components(positions.flatten(0, 2), components).scores.numpy()
    low, high = np.percentile(scores, [_DARKEST, _BRIGHTEST], axis=0)
    wide = high > low
    scaled = np.where(wide, (scores - low) / np.where(wide, high - low, 1), 0.5).clip(0, 1)
    return torch.from_numpy(scaled).float().unflatten(0, tuple(positions.shape[:3]))
