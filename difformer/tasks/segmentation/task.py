"""Segmentation: a class for each pixel, from maps of logits."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis import Interval, Metric, PairedDifference
from difformer.analysis.bootstrap import bootstrap_counts, paired_bootstrap_counts
from difformer.analysis.boundary import boundary_counts
from difformer.analysis.segmentation import (
    SegmentationMetrics,
    class_counts,
    mean_iou,
    pixel_confusion,
    segmentation_metrics,
)
from difformer.config import Size, as_json_size, as_positive_number, as_size, as_switch, check_range
from difformer.data import IGNORE, ImageDataset, Mask, Origin, Target
from difformer.models.precision import finite
from difformer.registry import did_you_mean
from difformer.report.page import Section
from difformer.tasks.dense import Kept
from difformer.tasks.registry import TASKS
from difformer.tasks.segmentation.inference import Segmented, at_own_size, by_windows
from difformer.tasks.segmentation.losses import lovasz_softmax, pixel_cross_entropy, soft_dice
from difformer.tasks.segmentation.pictures import as_palette, draw_segmentation, overlaid
from difformer.tasks.segmentation.tables import TABLES, readable, sections, write_tables
from difformer.tasks.task import Outputs, own_metrics

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": partial(pixel_cross_entropy, ignore_index=IGNORE),
    "dice": partial(soft_dice, ignore_index=IGNORE),
    "lovasz": partial(lovasz_softmax, ignore_index=IGNORE),
}


@dataclass(frozen=True, eq=False)
class SegmentationScore:
    """What an evaluation keeps of an image.

    Attributes:
        confusion: (K, K) int64 counts of its pixels; a row is a true class, a column a predicted one.
        boundary: (K, 4) int64 of `boundary_counts`; None where boundaries are not looked at.
    """

    confusion: NDArray[np.int64]
    boundary: NDArray[np.int64] | None = None


def _metric(name: str, title: str) -> Metric:
    def compute(scores: NDArray[Any], labels: NDArray[Any]) -> float:
        number = _measured(scores, [str(i) for i in range(len(scores[0].confusion))]).value(name)
        return float("nan") if number is None else number

    return Metric(compute, share=True, title=title)


METRICS = {
    "miou": _metric("miou", "mean IoU"),
    "pixel_accuracy": _metric("pixel_accuracy", "pixel accuracy"),
    "mean_accuracy": _metric("mean_accuracy", "mean accuracy"),
    "boundary_f": _metric("boundary_f", "boundary F"),
}


@TASKS.register("segmentation")
class Segmentation:
    """Outputs are maps of logits, and labels are masks.

    Args:
        losses: weights by name: cross_entropy, dice and lovasz, each the mean of an image. A head with losses of its
            own, such as pixel_mlp, takes none of them.
        auxiliary: weight of the loss of a head's auxiliary maps.
        window: of sliding windows in evaluation and prediction, its side or (h, w), usually `data.size`, with
            `data.fit: keep`; the whole image at once when None.
        stride: from one window to the next, as a share of its sides.
        boundary: measure the boundary F, too.

    Raises:
        ValueError: an unknown loss, or a value out of range.
    """

    reads = "maps"
    counted: tuple[str, ...] = ()
    tables = TABLES

    def __init__(
        self,
        *,
        losses: Mapping[str, float] | None = None,
        auxiliary: float = 0.4,
        window: Size | None = None,
        stride: float = 2 / 3,
        boundary: bool = False,
    ) -> None:
        weights = {"cross_entropy": 1.0} if losses is None else losses
        if not isinstance(weights, Mapping) or not weights:
            raise ValueError(f"losses must map names to weights, such as {{cross_entropy: 1}}, got {losses!r}")
        for name in weights:
            if name not in LOSSES:
                raise ValueError(f"unknown loss {name!r}; {did_you_mean(str(name), LOSSES)}")
        self.weights = {name: as_positive_number(f"losses.{name}", weight) for name, weight in weights.items()}
        check_range("auxiliary", auxiliary, lambda x: x >= 0, "at least 0")
        check_range("stride", stride, lambda x: 0 < x <= 1, "above 0 and at most 1")
        self.auxiliary, self.stride = float(auxiliary), float(stride)
        self.window = None if window is None else as_size("window", window)
        self.boundary = as_switch("boundary", boundary)

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was built with."""
        window = None if self.window is None else as_json_size(self.window)
        return {
            "losses": self.weights, "auxiliary": self.auxiliary, "window": window, "stride": self.stride,
            "boundary": self.boundary,
        }  # fmt: skip

    @property
    def metrics(self) -> dict[str, Metric]:
        """Mean IoU and accuracies; with `boundary`, the boundary F too."""
        return {name: metric for name, metric in METRICS.items() if self.boundary or name != "boundary_f"}

    def output_names(self, images: ImageDataset) -> tuple[str, ...]:
        """The names of the classes."""
        return images.class_names

    def stand_in(self) -> Mask:
        """A mask of one pixel."""
        return Mask(torch.zeros(1, 1, dtype=torch.uint8))

    def losses(self, outputs: Any, labels: Tensor) -> Tensor:
        """(B,) weighted sums of the losses.

        Args:
            outputs: maps of logits (B, K, h, w), or these and auxiliary ones; or a head's own losses, (B,) by name.
            labels: (B, H, W) int64, 255 where a pixel is ignored.
        """
        if isinstance(outputs, Mapping):
            return torch.stack(list(outputs.values())).sum(dim=0)
        maps, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        found = self._loss(maps, labels)
        for one in auxiliary:
            found = found + self.auxiliary * self._loss(one, labels)
        return found

    def _loss(self, maps: Tensor, labels: Tensor) -> Tensor:
        parts = [weight * LOSSES[name](maps, labels) for name, weight in self.weights.items()]
        return torch.stack(parts).sum(dim=0)

    def counts(self, outputs: Any, labels: Tensor) -> Sequence[Tensor]:
        """Nothing is counted in training."""
        return []

    def rates(self, counts: Mapping[str, float], images: int) -> dict[str, float]:
        """None."""
        return {}

    def infer(self, classifier: Any, images: Tensor, ids: Tensor, origins: Sequence[Origin]) -> list[Segmented]:
        """The classes of the images' pixels.

        Args:
            classifier: in evaluation mode, with a head that gives maps.
            images: (B, 3, h, w) in [-1, 1].
            ids: (B,) int64.
            origins: B.

        Raises:
            ValueError: logits that are not finite, or as `by_windows`.
        """
        if self.window is not None:
            found = []
            for image, number, origin in zip(images, ids.split(1), origins, strict=True):
                found.append(Segmented(*by_windows(classifier, image, number, origin, self.window, self.stride)))
            return found
        canvas = images.shape[2], images.shape[3]
        features, unsure = classifier.features(images, ids), None
        if hasattr(classifier.head, "with_uncertainty"):
            logits, unsure = classifier.head.with_uncertainty(classifier.in_precision_of_head(features))
        else:
            logits = classifier(features)
        finite("logits", logits)
        found = []
        for i, origin in enumerate(origins):
            labels, certainty = at_own_size(logits[i], origin, canvas)
            disagreement = None if unsure is None else origin.maps(unsure[i][None], canvas)[0]
            found.append(Segmented(labels, certainty, disagreement))
        return found

    def score(self, prediction: Segmented, target: Target, names: Sequence[str]) -> SegmentationScore:
        """Counts of an image's pixels."""
        assert isinstance(target, Mask)
        found, truth = prediction.labels[None], target.labels[None]
        confusion = pixel_confusion(found, truth, len(names), ignore_index=IGNORE)[0].cpu().numpy()
        boundary = None
        if self.boundary:
            boundary = boundary_counts(found, truth, len(names), ignore_index=IGNORE)[0].cpu().numpy()
        return SegmentationScore(confusion, boundary)

    def measure(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str], *, extra: Iterable[str] = ()
    ) -> SegmentationMetrics:
        """See `segmentation_metrics`.

        Raises:
            ValueError: no pixel is labelled, or a metric of the user's own is not finite.
        """
        return replace(_measured(outputs, names), extra=own_metrics(self, extra, outputs, labels))

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Mean IoU, accuracies, and the IoU of each class."""
        return readable(record)

    def write_tables(self, folder: Path, measured: SegmentationMetrics, outputs: Outputs, images: ImageDataset) -> None:
        """Classes, images and confusions as tables and pictures, and the counts of each image."""
        write_tables(folder, measured, outputs, images)

    def columns(self, names: Sequence[str]) -> list[str]:
        """The share of the image's pixels that each class takes, and the pixels' mean certainty."""
        return [*names, "certainty"]

    def rows(self, prediction: Segmented, names: Sequence[str]) -> list[list[Any]]:
        """One row, as `columns` says."""
        counts = torch.bincount(prediction.labels.flatten().int(), minlength=len(names))
        return [[*(counts / prediction.labels.numel()).tolist(), float(prediction.certainty.mean())]]

    def merit(self, score: SegmentationScore) -> float:
        """The image's mean IoU over the classes it has or is taken to have; 0 where nothing is labelled."""
        found = float(mean_iou(class_counts(score.confusion)))
        return 0.0 if np.isnan(found) else found

    def interval(self, kept: Sequence[Kept], *, resamples: int, seed: int) -> Interval:
        """Of the mean IoU."""
        return bootstrap_counts(_stacked(kept), _mean_of_models, resamples=resamples, seed=seed)

    def difference(
        self, kept: Sequence[Kept], others: Sequence[Kept], *, resamples: int, seed: int
    ) -> PairedDifference:
        """Of the mean IoU."""
        # As often as gives both sides the same number of models, which changes no mean.
        count = math.lcm(len(kept), len(others))
        one, other = (np.tile(_stacked(side), (1, count // len(side), 1, 1)) for side in (kept, others))
        return paired_bootstrap_counts(one, other, _mean_of_models, resamples=resamples, seed=seed)

    def write(self, folder: Path, stem: str, picture: Any, prediction: Segmented, names: Sequence[str]) -> None:
        """Writes `masks/STEM.png`, a mask with a palette, and `overlays/STEM.jpg`."""
        for name, image in (
            (f"masks/{stem}.png", as_palette(prediction.labels)),
            (f"overlays/{stem}.jpg", overlaid(picture, prediction.labels, names)),
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)

    def finish(self, folder: Path, stems: Sequence[str], names: Sequence[str]) -> None:
        """Writes `classes.txt`, the names of the masks' values."""
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")

    def sections(self, measured: SegmentationMetrics, folder: Path) -> list[Section]:
        """Numbers of all classes, bars, and the confusions."""
        return sections(measured, folder)

    def draw(self, path: Path, picture: Any, target: Target, prediction: Segmented, names: Sequence[str]) -> None:
        """Image, truth, prediction, errors and uncertainty."""
        assert isinstance(target, Mask)
        draw_segmentation(path, picture, target.labels, prediction, names)


def _measured(scores: NDArray[Any], names: Sequence[str]) -> SegmentationMetrics:
    total = np.sum([score.confusion for score in scores], axis=0)
    edges = [score.boundary for score in scores]
    boundary = None if any(one is None for one in edges) else np.stack(edges)
    return segmentation_metrics(total, names, num_images=len(scores), boundary=boundary)


def _stacked(kept: Sequence[Kept]) -> NDArray[np.int64]:
    """(N, M, K, 3) counts of the images by M models."""
    return np.stack([one["counts"] for one in kept], axis=1)


def _mean_of_models(counts: NDArray[Any], *, whole: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """(R,) the models' mean IoU, from sums over images (R, M, K, 3)."""
    found: NDArray[np.float64] = mean_iou(counts, whole=whole).mean(axis=-1)
    return found
