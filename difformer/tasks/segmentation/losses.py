"""Losses of maps of logits, one number an image.

Logits may have any resolution: they are enlarged to the labels'. Computed in float32 at least. An image without a
labelled pixel has loss 0, and what is not a number in one image stays in it.
"""

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.config import check_choice
from difformer.maps import as_ignore_index, resize_logits

Classes: TypeAlias = Literal["present", "all"]


def pixel_cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Cross-entropy, mean over an image's labelled pixels.

    Args:
        logits: (B, K, h, w) of any floating-point type.
        labels: (B, H, W) int64 in [0, K), or `ignore_index` where the class is not known.
        ignore_index: outside [0, K).

    Returns:
        (B,) nats, not negative.

    Raises:
        ValueError: wrong shapes, types or values.
    """
    enlarged, known = _prepared(logits, labels, ignore_index)
    losses = F.cross_entropy(enlarged, labels.where(known, -100), reduction="none", ignore_index=-100)
    return losses.flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1).clamp(min=1)


def soft_dice(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, classes: Classes = "present", smooth: float = 1.0
) -> Tensor:
    """One minus the Dice coefficient of probabilities, mean over an image's classes.

    Of a class, (2 Σ p y + s) / (Σ p + Σ y + s) over the labelled pixels, where y is 1 for those of the class and p its
    probability (Milletari et al. 2016, without squares in the denominator).

    Args:
        logits, labels, ignore_index: as for `pixel_cross_entropy`.
        classes: those that are labelled in the image, or all K.
        smooth: s, not negative.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: wrong shapes, types or values, or unknown classes.
    """
    if not smooth >= 0:
        raise ValueError(f"smooth must be a number of at least 0, got {smooth}")
    enlarged, known = _prepared(logits, labels, ignore_index)
    check_choice("classes", classes, get_args(Classes))
    p, shown = enlarged.softmax(dim=1), known[:, None]
    y = shown & (labels[:, None] == torch.arange(p.shape[1], device=p.device)[:, None, None])
    both, total = (torch.where(kept, p, 0).sum(dim=(2, 3)) for kept in (y, shown))
    total = total + y.sum(dim=(2, 3)) + smooth
    # Without smoothing, a class without pixels and probability is found as well as can be.
    losses = torch.where(total == 0, 0, 1 - (2 * both + smooth) / total.clamp(min=torch.finfo(p.dtype).tiny))
    counted = (y if classes == "present" else shown.expand_as(y)).flatten(2).any(dim=2)
    return torch.where(counted, losses, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def lovasz_softmax(logits: Tensor, labels: Tensor, *, ignore_index: int = 255, classes: Classes = "present") -> Tensor:
    """The Lovász extension of one minus the intersection over union, mean over an image's classes.

    Definition 2 and section 3 of Berman et al. 2018, in their code's `per_image` form.

    Args:
        logits, labels, ignore_index, classes: as for `soft_dice`.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: wrong shapes, types or values, or unknown classes.
    """
    enlarged, known = _prepared(logits, labels, ignore_index)
    check_choice("classes", classes, get_args(Classes))
    found = []
    for p, own, kept in zip(enlarged.softmax(dim=1), labels, known, strict=True):
        truth, rows = own[kept], p.unbind()
        numbers = truth.unique().tolist() if classes == "present" or not len(truth) else range(len(rows))
        losses = [_lovasz(rows[number][kept], truth == number) for number in numbers]
        # Without a labelled pixel, 0 with a gradient.
        found.append(torch.stack(losses).mean() if losses else p[:, kept].sum())
    return torch.stack(found)


def _lovasz(p: Tensor, y: Tensor) -> Tensor:
    """Of one class: its probabilities and truth values, both (n,)."""
    errors, order = (y.to(p) - p).abs().sort(descending=True, stable=True)
    right = y[order].to(p)
    count = right.sum()
    # Where the first k pixels are wrong: one minus the Jaccard index, whose steps weight the errors.
    jaccard = 1 - (count - right.cumsum(0)) / (count + (1 - right).cumsum(0))
    return (errors * torch.cat([jaccard[:1], jaccard.diff()])).sum()


def _prepared(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Logits at the labels' size, and which pixels are labelled."""
    if not logits.dtype.is_floating_point or logits.ndim != 4:
        raise ValueError(
            f"logits must be floating-point numbers (B, K, h, w), got {logits.dtype} {tuple(logits.shape)}"
        )
    if labels.dtype != torch.int64 or labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(
            f"labels must be int64 of shape ({len(logits)}, H, W), got {labels.dtype} {tuple(labels.shape)}"
        )
    known = labels != as_ignore_index(ignore_index, logits.shape[1])
    outside = known & ((labels < 0) | (labels >= logits.shape[1]))
    if outside.any():
        image, y, x = outside.nonzero()[0].tolist()
        raise ValueError(
            f"labels must lie in [0, {logits.shape[1]}) or be {ignore_index}, got {int(labels[image, y, x])} in image "
            f"{image} of the batch at row {y}, column {x}"
        )
    return resize_logits(logits, *labels.shape[1:]), known
