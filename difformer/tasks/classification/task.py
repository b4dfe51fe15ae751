"""Classification: cross-entropy of logits, how many are right, and the likeliest class."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis import METRICS, ClassificationMetrics, Metric, classification_metrics, image_scores
from difformer.data import ImageDataset
from difformer.tasks.classification.tables import TABLES, readable, write_tables
from difformer.tasks.registry import TASKS
from difformer.tasks.task import Outputs


@dataclass(frozen=True)
class Prediction:
    """A classifier's prediction for one image.

    Attributes:
        label: name of the likeliest class.
        probability: of that class.
        probabilities: by class name, in the order of the classes.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]


@TASKS.register("classification")
class Classification:
    """Outputs are logits of classes, and labels are class numbers.

    Args:
        label_smoothing: of the loss, in [0, 1); it affects training only and is not stored with the weights.
    """

    counted = ("correct",)
    tables = TABLES

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.arguments: dict[str, Any] = {}
        self._label_smoothing = label_smoothing

    @property
    def metrics(self) -> dict[str, Metric]:
        """Those of `difformer.analysis.METRICS`."""
        return {name: METRICS.find(name) for name in METRICS}

    def output_names(self, images: ImageDataset) -> tuple[str, ...]:
        """The names of the classes."""
        return images.class_names

    def stand_in(self) -> None:
        """Labels are class numbers."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,) cross-entropies; labels (B,), or probabilities (B, classes) for mixed images."""
        return F.cross_entropy(outputs.float(), labels, label_smoothing=self._label_smoothing, reduction="none")

    def counts(self, outputs: Tensor, labels: Tensor) -> Sequence[Tensor]:
        """The number of images whose largest logit is that of their label."""
        return [(outputs.argmax(dim=1) == labels).sum()]

    def rates(self, counts: Mapping[str, float], images: int) -> dict[str, float]:
        """The share of these images."""
        return {"top1": counts.get("correct", 0) / max(1, images)}

    def measure(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str], *, extra: Iterable[str] = ()
    ) -> ClassificationMetrics:
        """See `classification_metrics`."""
        return classification_metrics(outputs, labels, names, extra=extra)

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Accuracies, their interval and calibration."""
        return readable(record)

    def write_tables(
        self, folder: Path, measured: ClassificationMetrics, outputs: Outputs, images: ImageDataset
    ) -> None:
        """What each class received, the confusion matrix, and the predictions."""
        write_tables(folder, measured, image_scores(outputs.values, outputs.labels), outputs, images)

    def predictions(self, outputs: Tensor, names: Sequence[str]) -> list[Prediction]:
        """The likeliest class of each image; of equal ones the first."""
        found = []
        for row in outputs.softmax(dim=1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            found.append(Prediction(names[best], row[best], dict(zip(names, row, strict=True))))
        return found

    def columns(self, names: Sequence[str]) -> list[str]:
        """The likeliest class, its probability, and the probability of each."""
        return ["label", "probability", *names]

    def row(self, prediction: Prediction) -> list[Any]:
        """As `columns` says."""
        return [prediction.label, prediction.probability, *prediction.probabilities.values()]
