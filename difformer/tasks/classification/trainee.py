"""What learns: a classifier as the training loop sees it, on images or on features from the disk."""

from typing import Any

import torch
from torch import Tensor, nn

from difformer.classifier import DiffusionClassifier
from difformer.data import Batch


class Trainee(nn.Module):
    """A batch to logits.

    Accelerate's mixed precision concerns the head alone: the backbone computes in its own precision, and norms,
    embeddings and feedback layers in float32.

    Args:
        classifier: the classifier.
        on_features: batches hold features in place of images; the extractor then takes no part.
    """

    def __init__(self, classifier: DiffusionClassifier, *, on_features: bool = False) -> None:
        super().__init__()
        self.head = classifier.head
        self.extractor = None if on_features else classifier.extractor

    def forward(self, inputs: Any, ids: Tensor) -> Tensor:
        """Classifies.

        Args:
            inputs: images (B, 3, H, W) in [-1, 1], or features by key.
            ids: (B,) the images' stable numbers.

        Returns:
            Logits (B, num_classes).
        """
        if self.extractor is not None:
            with torch.autocast(inputs.device.type, enabled=False):
                inputs = self.extractor(inputs, ids)
        return self.head(inputs)


def inputs_of(batch: Any, device: torch.device) -> tuple[Any, Tensor, Tensor]:
    """Inputs, labels and ids of a `Batch` of images or a `FeatureBatch`, on a device."""
    labels, ids = (tensor.to(device, non_blocking=True) for tensor in (batch.labels, batch.ids))
    if isinstance(batch, Batch):
        return batch.images.to(device, non_blocking=True), labels, ids
    return {key: value.to(device, non_blocking=True) for key, value in batch.features.items()}, labels, ids
