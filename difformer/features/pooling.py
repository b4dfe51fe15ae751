"""Features of whole images: each map averaged to a few cells, all joined to one vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.engine.config.build import Extractor


class PooledFeatures(nn.Module):
    """Images to vectors.

    Args:
        extractor: reads the maps.
        pool: side to which each is averaged, by adaptive average pooling.
        normalize: scale each feature to length 1 before they are joined.
    """

    def __init__(self, extractor: Extractor, pool: int = 1, *, normalize: bool = False) -> None:
        super().__init__()
        self.extractor = extractor
        self.pool = pool
        self.normalize = normalize

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Reads and joins the features.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            ids: (B,) the images' stable numbers.

        Returns:
            (B, D) float32: the features in the extractor's order, each with its channels outermost.
        """
        with torch.autocast(images.device.type, enabled=False):
            features = self.extractor(images, ids)
        vectors = [F.adaptive_avg_pool2d(maps.float(), self.pool).flatten(1) for maps in features.values()]
        return torch.cat([F.normalize(vector) for vector in vectors] if self.normalize else vectors, dim=1)
