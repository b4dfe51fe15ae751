"""Features of whole images: maps averaged to a few cells, as vectors."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.backbones import Backbone
from difformer.config import Size
from difformer.features.extractor import FeatureExtractor
from difformer.features.feedback import FeedbackExtractor
from difformer.features.reduced import read_reduced
from difformer.taps import FeatureKey


class PooledFeatures(nn.Module):
    """Images to vectors.

    Args:
        extractor: reads the maps.
        pool: side to which each is averaged, by adaptive average pooling.
        normalize: scale each feature to length 1 before they are joined.
    """

    def __init__(
        self, extractor: FeatureExtractor | FeedbackExtractor, pool: int = 1, *, normalize: bool = False
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.pool = pool
        self.normalize = normalize

    def forward(self, images: Tensor, ids: Tensor, **conditioning: Tensor) -> Tensor:
        """Reads and joins the features.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            ids: (B,) the images' stable numbers.
            conditioning: as for the extractor.

        Returns:
            (B, D) float32: the features in the extractor's order, each with its channels outermost.
        """
        with torch.autocast(images.device.type, enabled=False):
            features = self.extractor(images, ids, **conditioning)
        vectors = [F.adaptive_avg_pool2d(maps.float(), self.pool).flatten(1) for maps in features.values()]
        return torch.cat([F.normalize(vector) for vector in vectors] if self.normalize else vectors, dim=1)


class DiffusionBlocks:
    """The blocks of a diffusion model at several timesteps.

    Args:
        backbone: the model.
        taps: tap names or block numbers; all when empty.
        timesteps: noise timesteps.
        seed: of the noise.
        pool: side to which maps are averaged; no averaging when None.
        image_size: of the images, a side or (h, w); the backbone's own when None.
        conditioning: as for `FeatureExtractor`.

    Attributes:
        keys: of the features, blocks outermost.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[int | str],
        timesteps: Sequence[int],
        seed: int,
        pool: int | None,
        image_size: Size | None = None,
        conditioning: Mapping[str, int | str] | None = None,
    ) -> None:
        self._extractor = FeatureExtractor(
            backbone,
            taps=taps or tuple(backbone.taps),
            timesteps=timesteps,
            seed=seed,
            image_size=image_size,
            conditioning=conditioning,
        )
        self._pool = pool
        self.keys = [FeatureKey(tap, t) for tap in self._extractor.taps for t in timesteps]

    @property
    def names(self) -> list[str]:
        """Block and timestep of each feature."""
        return [f"{key.tap}, t = {key.t}" for key in self.keys]

    def places(self, t: int) -> dict[str, int]:
        """The positions among the names of the blocks at a timestep, by block."""
        return {key.tap: place for place, key in enumerate(self.keys) if key.t == t}

    def read(self, images: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Args: images (B, 3, H, W) in [-1, 1], ids and labels (B,). Returns (B, D) by name."""
        given = self._extractor.conditioning.by_label(labels)
        vectors = read_reduced(self._extractor, images, ids, lambda key, maps: {key: flat(maps, self._pool)}, **given)
        return {name: vectors[key] for name, key in zip(self.names, self.keys, strict=True)}


def flat(maps: Tensor, pool: int | None) -> Tensor:
    """(B, C · h · w) float32 of maps (B, C, h, w), averaged to at most `pool` cells a side where that is given."""
    maps = maps.float()
    if pool is not None:
        maps = F.adaptive_avg_pool2d(maps, (min(pool, maps.shape[2]), min(pool, maps.shape[3])))
    return maps.flatten(1)
