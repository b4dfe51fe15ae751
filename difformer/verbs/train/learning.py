"""What training a head means for the loop: fresh noise for each epoch, mixed images, the classifier that is kept."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difformer.classifier import DiffusionClassifier
from difformer.engine.config.recipe import TrainingConfig
from difformer.engine.loop.optimisation import Mixing
from difformer.engine.loop.trainer import Place
from difformer.engine.runtime.batches import inputs_of
from difformer.streams import epoch_seed, stable_id


@dataclass(frozen=True)
class Kept:
    """The classifier that is kept so far.

    Attributes:
        weights: of head and feedback, on the CPU.
        record: of its epoch, as in metrics.jsonl.
    """

    weights: dict[str, Tensor]
    record: dict[str, Any]


class HeadLearning:
    """The loss of a classifier's task.

    Args:
        classifier: trained in place.
        config: mixup and cutmix, of classes alone.
        seed: of the extractor's noise; each epoch derives its own from it.

    Attributes:
        kept: the best classifier so far, where the best is to be kept.
    """

    def __init__(self, classifier: DiffusionClassifier, config: TrainingConfig, *, seed: int) -> None:
        self.module = classifier
        self.parts = classifier.trained_parts
        self.counted = classifier.task.counted
        self.kept: Kept | None = None
        self._seed, self._training_seed = seed, config.seed
        self._mixing = Mixing(config, len(classifier.class_names))

    def begin_epoch(self, epoch: int) -> None:
        """Fresh noise for each epoch."""
        self.module.extractor.seed = epoch_seed(self._seed, epoch)

    def losses(self, model: Any, batch: Any, device: torch.device, place: Place) -> tuple[Tensor, list[Tensor]]:
        """(B,) losses, and what the task counts.

        Raises:
            ValueError: the task gives losses of another shape, or counts something else than it says.
        """
        inputs, labels, ids = inputs_of(batch, device)
        targets = labels
        if isinstance(inputs, Tensor):
            inputs, targets = self._mixing(inputs, labels, place.step, place.process, place.part)
        told: dict[str, Any] = self.module.conditioning.by_label(labels)
        if hasattr(self.module.head, "losses"):
            # Its losses draw places or regions, by numbers of the step and the image.
            keys = (f"places {self._training_seed} {place.step} {one}" for one in ids.tolist())
            told |= {"targets": targets, "seeds": [stable_id(key.encode()) for key in keys]}
        outputs = model(inputs, ids, **told)
        task = self.module.task
        losses, counts = task.losses(outputs, targets), list(task.counts(outputs, labels))
        if losses.shape != (len(labels),):
            raise ValueError(
                f"the task {type(task).__name__} must give one loss an image, ({len(labels)},), got losses of shape "
                f"{tuple(losses.shape)}"
            )
        if len(counts) != len(self.counted):
            raise ValueError(
                f"the task {type(task).__name__} must count what its counted names, {', '.join(self.counted)}: "
                f"{len(self.counted)} numbers, got {len(counts)}"
            )
        return losses, counts

    def end_step(self) -> None:
        """Nothing is learned beside the weights."""

    def state_dict(self) -> dict[str, Any]:
        """What is to be known beside the weights: the classifier that is kept."""
        return {} if self.kept is None else {"kept": vars(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.kept = Kept(**state["kept"]) if "kept" in state else None
