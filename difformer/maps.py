"""Maps of classes: what data, losses and measures do with them in the same way."""

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.config import as_integer

# The label of pixels that count neither in a loss nor in a metric.
IGNORE = 255


def resize_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits at a size of pixels, bilinearly, with pixels as areas (`align_corners=False`).

    Args:
        logits: (B, K, h, w) of any floating-point type.
        height, width: of the result, H and W.

    Returns:
        (B, K, H, W) float32 or float64.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if wide.shape[2:] == (height, width):
        return wide
    return F.interpolate(wide, (height, width), mode="bilinear", align_corners=False)


def as_ignore_index(value: int, classes: int) -> int:
    """The label of pixels that do not count.

    Raises:
        ValueError: it is that of a class, of which there are so many, or no integer.
    """
    ignored = as_integer("ignore_index", value)
    if 0 <= ignored < classes:
        raise ValueError(
            f"ignore_index must not be the number of one of the {classes} classes, got {ignored}; leave a class out "
            "by giving its pixels another number, such as 255"
        )
    return ignored
