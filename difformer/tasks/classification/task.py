"""What training a classifier means for the loop: its loss, and what is measured beside it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.classifier import DiffusionClassifier
from difformer.engine.config.recipe import TrainingConfig
from difformer.engine.loop.optimisation import Mixing
from difformer.engine.loop.trainer import Place
from difformer.engine.runtime.batches import inputs_of
from difformer.streams import epoch_seed


@dataclass(frozen=True)
class Kept:
    """The classifier that is kept so far.

    Attributes:
        weights: of head and feedback, on the CPU.
        record: of its epoch, as in metrics.jsonl.
    """

    weights: dict[str, Tensor]
    record: dict[str, Any]


class Classification:
    """Cross-entropy of a classifier's logits.

    Args:
        classifier: trained in place.
        config: label smoothing, mixup and cutmix.
        seed: of the extractor's noise; each epoch derives its own from it.

    Attributes:
        kept: the best classifier so far, where the best is to be kept.
    """

    counted = ("correct",)

    def __init__(self, classifier: DiffusionClassifier, config: TrainingConfig, *, seed: int) -> None:
        self.module = classifier
        self.parts = classifier.trained_parts
        self.kept: Kept | None = None
        self._extractor = classifier.extractor
        self._seed = seed
        self._label_smoothing = config.label_smoothing
        self._mixing = Mixing(config, len(classifier.class_names))

    def begin_epoch(self, epoch: int) -> None:
        """Fresh noise for each epoch."""
        self._extractor.seed = epoch_seed(self._seed, epoch)

    def losses(self, model: Any, batch: Any, device: torch.device, place: Place) -> tuple[Tensor, list[Tensor]]:
        """(B,) losses, and of how many images the largest logit is the label's."""
        inputs, labels, ids = inputs_of(batch, device)
        targets = labels
        if isinstance(inputs, Tensor):
            inputs, targets = self._mixing(inputs, labels, place.step, place.process, place.part)
        logits = model(inputs, ids)
        losses = F.cross_entropy(logits.float(), targets, label_smoothing=self._label_smoothing, reduction="none")
        return losses, [(logits.argmax(dim=1) == labels).sum()]

    def end_step(self) -> None:
        """Nothing is learned beside the weights."""

    def state_dict(self) -> dict[str, Any]:
        """What is to be known beside the weights: the classifier that is kept."""
        return {} if self.kept is None else {"kept": vars(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.kept = Kept(**state["kept"]) if "kept" in state else None
