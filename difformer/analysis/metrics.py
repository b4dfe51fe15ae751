"""How well logits classify: accuracies, the confusion matrix, calibration, and what each class received."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis._inputs import Array, as_labels, as_matrix
from difformer.analysis.bootstrap import Interval, bootstrap_mean
from difformer.config import as_positive_integer
from difformer.registry import Registry

# How much the outputs of a classifier tell: the order of the classes (`scores`), and also the probability of the
# predicted class (`confidence`), or of each class (`probabilities`).
Told: TypeAlias = Literal["scores", "confidence", "probabilities"]

# Elements that are processed together: 2000 rows of ImageNet's thousand classes take 16 MB in float64.
_CHUNK_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class Metric:
    """A number that says how good the outputs for a split are.

    Attributes:
        compute: from outputs (N, C) float32, such as logits, and labels (N,) int64, or the targets (N, …) of another
            task, to the number.
        larger_is_better: which way it counts where it chooses.
        share: whether it lies in [0, 1] and is written in per cent.
        title: what tables and the console call it, where that is not its name.
        reads: what the number depends on: the outputs' order or size alone (`scores`), their softmax for the predicted
            class (`confidence`), or for each class (`probabilities`). The metric is refused as the criterion of a
            method that does not give it.
    """

    compute: Callable[[NDArray[Any], NDArray[Any]], float]
    larger_is_better: bool = True
    share: bool = False
    title: str | None = None
    reads: Told = "scores"

    @property
    def sign(self) -> int:
        """1 where larger is better, else -1. Of two numbers multiplied by it, the larger is always the better one;
        multiplied by it once more, they are the numbers again."""
        return 1 if self.larger_is_better else -1

    def text(self, value: float, width: int = 0) -> str:
        """A value as people read it: `73.2%`, or four digits."""
        return f"{value:{width}.1%}" if self.share else f"{value:{width}.4g}"


METRICS: Registry[Metric] = Registry("metric")


def find_metric(name: str) -> Metric:
    """A metric by name, or one of your own as `package.module:Name`.

    Raises:
        ValueError: there is none, or it is something else.
        ImportError: its module cannot be imported.
    """
    found = METRICS.find(name)
    if not isinstance(found, Metric):
        raise ValueError(f"{name} must be a difformer.analysis.Metric, got {type(found).__name__}")
    return found


@dataclass(frozen=True, eq=False)
class ImageScores:
    """What each image's logits say about its label. The mean of any of them can be given to `bootstrap_mean`.

    Attributes:
        predicted: (N,) int64, the class of the largest logit; of equal ones the first.
        rank: (N,) int64, how many classes come before the label: 0 is a hit, less than 5 a top-5 hit. Classes with an
            equal logit come before it too, unless it is predicted: so classes that all have no k-NN vote are no hits.
        confidence: (N,) float64 in (0, 1], the probability of the predicted class.
        nll: (N,) float64, minus the natural logarithm of the label's probability.
    """

    predicted: NDArray[np.int64]
    rank: NDArray[np.int64]
    confidence: NDArray[np.float64]
    nll: NDArray[np.float64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,): the label is the predicted class."""
        return self.rank == 0


@dataclass(frozen=True)
class ClassMetrics:
    """One class's row of the table.

    Attributes:
        name: of the class.
        count: of images that are of the class.
        recall: share of them that were recognised, which is the class's accuracy; None where there are none.
        precision: share of the images taken for the class that are of it; None where none were.
        f1: harmonic mean of recall and precision, 0 without a hit; None where there are no images.
    """

    name: str
    count: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True, eq=False)
class ClassificationMetrics:
    """What `classification_metrics` finds in a split. Means over classes leave out those without an image.

    Attributes:
        num_images: N.
        num_classes: C, those without an image included.
        absent: names of the classes without an image, in the classes' order.
        top1: share of the images whose label has the largest logit.
        top1_interval: its bootstrap confidence interval.
        top5: share of the images whose label has one of the five largest logits; None for five classes or fewer.
        mean_per_class: mean of the classes' recalls, as Aircraft, Flowers and Pets are reported.
        macro_f1: mean of the classes' F1.
        nll: mean negative log-likelihood of the labels, in nats.
        ece: expected calibration error, in [0, 1].
        confusion: (C, C) int64 counts; a row is a true class, a column a predicted one.
        per_class: C rows of the table.
        extra: further metrics by name, where others were asked for.
    """

    num_images: int
    num_classes: int
    absent: tuple[str, ...]
    top1: float
    top1_interval: Interval
    top5: float | None
    mean_per_class: float
    macro_f1: float
    nll: float
    ece: float
    confusion: NDArray[np.int64]
    per_class: tuple[ClassMetrics, ...]
    extra: Mapping[str, float] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """The number of a metric: an attribute, the mean negative log-likelihood as `loss`, or an extra one."""
        own = {"loss": "nll"}.get(name, name)
        return self.extra[name] if name in self.extra else getattr(self, own)

    def summary(self) -> dict[str, float]:
        """The numbers in the record of an epoch."""
        line = {"loss": self.nll, "top1": self.top1, "mean_per_class": self.mean_per_class, "ece": self.ece}
        return (line if self.top5 is None else line | {"top5": self.top5}) | dict(self.extra)

    def to_dict(self, *, tables: bool = True) -> dict[str, Any]:
        """The same in JSON's types: numbers, text, None, lists and dictionaries with the attributes' names.

        Args:
            tables: with `confusion` and `per_class`, which are long.
        """
        rows = [asdict(row) for row in self.per_class]
        long = {"confusion": self.confusion.tolist(), "per_class": rows}
        found = vars(self) | {"top1_interval": asdict(self.top1_interval), "absent": list(self.absent)} | long
        extra = dict(found.pop("extra"))
        return {name: found[name] for name in found if tables or name not in long} | ({"extra": extra} if extra else {})


def classification_metrics(
    logits: Array,
    labels: Array,
    class_names: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
    bins: int = 15,
    extra: Iterable[str] = (),
) -> ClassificationMetrics:
    """Everything that one split's logits and labels tell.

    Args:
        logits: (N, C) finite, of any floating-point type and device; the computation is in float64 on the CPU.
        labels: (N,) integers in [0, C).
        class_names: C names.
        seed: of the bootstrap, not negative.
        resamples: of the bootstrap.
        level: of the confidence interval, in (0, 1).
        bins: of the calibration error.
        extra: names of further metrics, see `find_metric`; those that are here already are left out.

    Raises:
        ValueError: no images, wrong shapes, types or ranges, a logit that is not finite; or as `find_metric`.
    """
    further = {name: find_metric(name) for name in extra if name not in _OWN}
    logits = as_matrix("logits", logits)
    num_images, num_classes = logits.shape
    names = list(class_names)
    if len(names) != num_classes:
        raise ValueError(f"{num_classes} columns of logits need as many class names, got {len(names)}")
    scores = image_scores(logits, labels)
    confusion = confusion_matrix(scores.predicted, labels, num_classes)
    table = _class_table(confusion, names)
    present = [row for row in table if row.count]
    return ClassificationMetrics(
        num_images=num_images,
        num_classes=num_classes,
        absent=tuple(row.name for row in table if not row.count),
        top1=float(scores.correct.mean()),
        top1_interval=bootstrap_mean(scores.correct, resamples=resamples, level=level, seed=seed),
        top5=float((scores.rank < 5).mean()) if num_classes > 5 else None,
        mean_per_class=float(np.mean([row.recall for row in present])),
        macro_f1=float(np.mean([row.f1 for row in present])),
        nll=float(scores.nll.mean()),
        ece=calibration_error(scores.confidence, scores.correct, bins=bins),
        confusion=confusion,
        per_class=table,
        extra=_compute(further, logits, labels),
    )


def _compute(metrics: Mapping[str, Metric], logits: Tensor, labels: Array) -> dict[str, float]:
    if not metrics:
        return {}
    values, targets = logits.float().cpu().numpy(), as_labels(labels, *logits.shape).cpu().numpy()
    return {name: float(metric.compute(values, targets)) for name, metric in metrics.items()}


def accuracy(logits: Array, labels: Array, criterion: str = "top1") -> float:
    """Share of the images, or mean over the classes with images of their share, whose label has the largest logit.

    Args:
        logits: (N, C) finite.
        labels: (N,) integers in [0, C).
        criterion: which of the two.

    Raises:
        ValueError: wrong shapes, types or ranges, or an unknown criterion.
    """
    if criterion not in ("top1", "mean_per_class"):
        raise ValueError(f"criterion must be 'top1' or 'mean_per_class', got {criterion!r}")
    logits = as_matrix("logits", logits)
    labels = as_labels(labels, *logits.shape).cpu()
    correct = (logits.argmax(dim=1).cpu() == labels).double()
    if criterion == "top1":
        return float(correct.mean())
    counts = labels.bincount().double()
    return float((labels.bincount(correct) / counts)[counts > 0].mean())


def measure(logits: Array, labels: Array, criterion: str = "top1") -> float:
    """The number that chooses: `accuracy`, or another metric.

    Args:
        logits: (N, C) finite.
        labels: (N,) integers in [0, C).
        criterion: name of a metric, see `find_metric`.

    Raises:
        ValueError: wrong shapes, types or ranges, or the metric has no finite number here; or as `find_metric`.
        ImportError: as `find_metric`.
    """
    if criterion in ("top1", "mean_per_class"):
        # In the logits' own precision, and without computing the other metrics.
        return accuracy(logits, labels, criterion)
    METRICS.check(criterion, "criterion")
    value = _compute({criterion: find_metric(criterion)}, as_matrix("logits", logits), labels)[criterion]
    if not math.isfinite(value):
        raise ValueError(f"criterion: {criterion} is {value} here, so that nothing can be chosen by it")
    return value


def image_scores(logits: Array, labels: Array) -> ImageScores:
    """Prediction, rank of the label, confidence and negative log-likelihood of every image.

    Args and raises: as `classification_metrics`.
    """
    logits = as_matrix("logits", logits)
    labels = as_labels(labels, *logits.shape)
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    parts = []
    for x, y in zip(logits.split(rows), labels.split(rows), strict=True):
        x, y = x.cpu().double(), y.cpu()[:, None]
        log_p = x.log_softmax(dim=1)
        # torch.argmax gives the first of equal logits.
        predicted = x.argmax(dim=1)
        rank = ((x >= x.gather(1, y)).sum(dim=1) - 1).masked_fill(predicted == y[:, 0], 0)
        confidence = log_p.gather(1, predicted[:, None])[:, 0].exp()
        parts.append((predicted, rank, confidence, -log_p.gather(1, y)[:, 0]))
    return ImageScores(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def confusion_matrix(predicted: Array, labels: Array, num_classes: int) -> NDArray[np.int64]:
    """Counts of images by true and predicted class.

    Args:
        predicted: (N,) integers in [0, num_classes).
        labels: (N,) integers in [0, num_classes).
        num_classes: C, at least 1.

    Returns:
        (C, C); a row is a true class, a column a predicted one.

    Raises:
        ValueError: wrong shapes, types or ranges.
    """
    num_classes = as_positive_integer("num_classes", num_classes)
    truth = as_labels(labels, len(labels), num_classes).cpu()
    found = as_labels(predicted, len(truth), num_classes).cpu()
    # torchmetrics counts the same way, but refuses a single class and takes seconds to import.
    counts = torch.bincount(truth * num_classes + found, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).numpy()


def calibration_error(confidence: NDArray[Any], correct: NDArray[Any], *, bins: int = 15) -> float:
    """Expected calibration error: the gap between confidence and accuracy over equally wide bins of confidence,
    weighted by the images in each. Equation 3 of Guo et al. 2017, "On calibration of modern neural networks".

    Args:
        confidence: (N,) in [0, 1], of the predicted class.
        correct: (N,) true where the prediction is right.
        bins: M; bin m is ((m - 1) / M, m / M].

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: no images, different shapes, or confidences outside [0, 1].
    """
    bins = as_positive_integer("bins", bins)
    if confidence.ndim != 1 or not len(confidence) or confidence.shape != correct.shape:
        raise ValueError(f"confidence and correct must both be (N,), got {confidence.shape} and {correct.shape}")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidences must lie in [0, 1]")
    # torchmetrics' bins are closed on the left, which puts confidences of exactly 1, of which confident networks
    # give many, into a bin of their own.
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:], confidence, side="left")
    gaps = np.bincount(places, weights=correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _class_table(confusion: NDArray[np.int64], names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    counts, taken = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    return tuple(
        ClassMetrics(
            name=name,
            count=count,
            recall=hits / count if count else None,
            precision=hits / guesses if guesses else None,
            f1=2 * hits / (count + guesses) if count else None,
        )
        for name, count, guesses, hits in zip(names, counts, taken, confusion.diagonal().tolist(), strict=True)
    )


def _own(name: str) -> Callable[[NDArray[Any], NDArray[Any]], float]:
    def compute(logits: NDArray[Any], labels: NDArray[Any]) -> float:
        found = classification_metrics(logits, labels, list(map(str, range(logits.shape[1]))), resamples=1).value(name)
        return math.nan if found is None else found

    return compute


def _mean_iou(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean over the classes of intersection over union, as of pixels."""
    confusion = confusion_matrix(logits.argmax(axis=1), labels, logits.shape[1])
    right = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return float((right[union > 0] / union[union > 0]).mean())


# The numbers of ClassificationMetrics.
_OWN = {
    "top1": Metric(_own("top1"), share=True, title="top-1"),
    "top5": Metric(_own("top5"), share=True, title="top-5"),
    "mean_per_class": Metric(_own("mean_per_class"), share=True, title="mean per class"),
    "macro_f1": Metric(_own("macro_f1"), share=True, title="macro F1"),
    "loss": Metric(_own("loss"), larger_is_better=False, title="cross-entropy", reads="probabilities"),
    "ece": Metric(_own("ece"), larger_is_better=False, share=True, title="ECE", reads="confidence"),
}
for _name, _metric in _OWN.items():
    METRICS.register(_name)(_metric)
METRICS.register("miou")(Metric(_mean_iou, share=True, title="mean IoU"))
