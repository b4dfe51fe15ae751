"""Features that are made smaller as they are read, since whole maps of all blocks at once are large."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from difformer.features.extractor import FeatureExtractor
from difformer.taps import FeatureKey

K = TypeVar("K")
Reduce = Callable[[FeatureKey, Tensor], dict[K, Tensor]]

# Maps in memory at once: many images of a small network, few of ADM-256, whose maps take 0.7 GB an image and timestep.
_MOST_BYTES = 2**31


def read_reduced(
    extractor: FeatureExtractor, images: Tensor, ids: Tensor, reduce: Reduce[K], **conditioning: Tensor
) -> dict[K, Tensor]:
    """Reads features of as many images at a time as fit in memory, and keeps only their reduced form.

    Args:
        extractor: reads the maps.
        images: (B, 3, H, W) in [-1, 1].
        ids: (B,).
        reduce: takes a feature's key and maps (b, C, h, w), and gives what is kept, (b, …) by name. No two features
            may give the same name.
        conditioning: as for the extractor, (B, …).

    Returns:
        (B, …) by name, on the images' device.

    Raises:
        ValueError: as the extractor.
    """
    numbers = sum(spec.channels * spec.height * spec.width for spec in extractor.specs.values())
    size = max(1, int(_MOST_BYTES / (numbers * extractor.dtype.itemsize)))
    parts: list[dict[K, Tensor]] = []
    for start in range(0, max(1, len(images)), size):
        part = slice(start, start + size)
        kept: dict[K, Tensor] = {}
        some = {name: value[part] for name, value in conditioning.items()}
        for key, maps in extractor(images[part], ids[part], **some).items():
            kept |= reduce(key, maps)
        parts.append(kept)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
