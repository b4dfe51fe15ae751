"""Features of single pixels at every block, with their classes, from one pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from difformer.data import IGNORE, ImageDataset, Mask, Origin
from difformer.engine.config.recipe import BatchSize
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.extraction.pooled import SplitFeatures
from difformer.engine.runtime.outputs import evaluate
from difformer.features import FeatureExtractor
from difformer.heads.pyramid import pixels_at
from difformer.streams import stable_id


class PixelsOfEveryTap(nn.Module):
    """Images to the features of some of their pixels, those of all blocks joined.

    Pixels are drawn from those that are labelled, all equally likely, by seed and image; each is read where it lies in
    the image at its own size, as maps that are resized bilinearly would give it.

    Args:
        extractor: reads the maps, at one timestep, of whole images that are stretched to the input's size.
        count: pixels of an image.
        seed: of the draw.

    Attributes:
        places: columns of each (tap, 1) in the vectors.
        width: D, the number of columns.
    """

    # What `evaluate` asks of a task with masks.
    reads = "maps"

    def __init__(self, extractor: FeatureExtractor, count: int, seed: int) -> None:
        super().__init__()
        self.extractor = extractor
        self._count, self._seed = count, seed
        self.places: dict[tuple[str, int], slice] = {}
        start = 0
        for key, spec in extractor.specs.items():
            self.places[key.tap, 1] = slice(start, start := start + spec.channels)
        self.width = start

    def infer(
        self, classifier: Any, images: Tensor, ids: Tensor, origins: Sequence[Origin]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each image its vectors (P, D) float32 and their classes (P,) int64; none where nothing is labelled."""
        with torch.autocast(images.device.type, enabled=False):
            maps = self.extractor(images, ids)
        found = []
        for i, (number, origin) in enumerate(zip(ids.tolist(), origins, strict=True)):
            assert isinstance(origin.target, Mask)
            labels = origin.target.labels
            known = (labels.flatten() != IGNORE).nonzero()[:, 0]
            generator = torch.Generator().manual_seed(stable_id(f"pixels {self._seed} {number}".encode()))
            chosen = known[torch.randint(max(1, len(known)), (self._count if len(known) else 0,), generator=generator)]
            rows, columns = chosen // labels.shape[1], chosen % labels.shape[1]
            where = torch.stack([torch.zeros_like(rows), rows, columns], dim=1).to(images.device)
            vectors = pixels_at([one[i : i + 1].float() for one in maps.values()], labels.shape, where)
            found.append((vectors.cpu().numpy(), labels.flatten()[chosen].long().numpy()))
        return found

    def score(self, prediction: Any, target: Any, names: Sequence[str]) -> Any:
        """Vectors and classes, as they are."""
        return prediction


def read_pixels(
    model: PixelsOfEveryTap, images: ImageDataset, accelerator: Any, *, batch_size: BatchSize, workers: int, title: str
) -> SplitFeatures:
    """Reads pixels of a split, those of each image once, on all processes together; see `evaluate`.

    Raises:
        ValueError: no pixel of the split is labelled.
    """
    task: Any = model
    outputs = evaluate(
        model, images, collate_readable, accelerator,
        batch_size=batch_size, workers=workers, progress=True, title=title, task=task,
    )  # fmt: skip
    vectors, labels = (np.concatenate([one[part] for one in outputs.values]) for part in (0, 1))
    if not len(labels):
        raise ValueError(f"{images} has no labelled pixel")
    return SplitFeatures(vectors, labels, model.places)
