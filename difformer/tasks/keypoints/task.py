"""Landmarks: named points of an image, from heat maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis import Interval, Metric, PairedDifference, bootstrap_mean, paired_bootstrap
from difformer.analysis.keypoints import KeypointMetrics, keypoint_metrics
from difformer.annotations.coco import swap_of
from difformer.annotations.landmarks import WFLW_NAMES, WFLW_PAIRS
from difformer.config import as_positive_number, as_switch, as_tuple
from difformer.data import ImageDataset, Origin, Points, Target
from difformer.models.precision import finite
from difformer.report.page import Section
from difformer.tasks.dense import Kept
from difformer.tasks.keypoints.heatmaps import decode_heatmaps, heatmap_targets
from difformer.tasks.keypoints.losses import heatmap_mse
from difformer.tasks.keypoints.pictures import draw_keypoints, marked
from difformer.tasks.keypoints.scores import KeypointScore, Landmarks, as_length, check_length, length_of
from difformer.tasks.keypoints.tables import TABLES, readable, sections, write_tables
from difformer.tasks.registry import TASKS
from difformer.tasks.task import Outputs, own_metrics


@TASKS.register("keypoints")
class Keypoints:
    """Outputs are heat maps, one a point, and labels are points.

    The maps cover the whole input, at any resolution. They learn Gaussians around the visible points by the mean
    squared error.

    Args:
        sigma: standard deviation of the Gaussians in cells of the maps.
        normalize: what errors are divided by: two points, such as [left_eye, right_eye], or two lists of points, whose
            centres are meant; of the object's box (with `data.box_scale`) the longer side `box`, `box_sqrt_area` or
            `box_diagonal`; or `image`, the diagonal of the image at its own size. Images that do not show what it needs
            are left out of what is relative to it.
        threshold: an image with a larger error relative to that length is a failure; also the end of the area under
            the curve.
        alphas: shares of that length within which a point is correct (PCK).
        flip_test: average the maps with those of the mirrored image, in evaluation and prediction.
        flip_pairs: names of the points that change places in a mirrored image, for `flip_test`; when None those whose
            names differ in left and right, and those of WFLW; none with {}.

    Raises:
        ValueError: a value out of range, or pairs without `flip_test`.
    """

    reads = "points"
    counted: tuple[str, ...] = ()
    tables = TABLES

    def __init__(
        self,
        *,
        sigma: float = 2.0,
        normalize: Any = "image",
        threshold: float = 0.1,
        alphas: Sequence[float] = (0.05, 0.1),
        flip_test: bool = False,
        flip_pairs: Mapping[str, str] | None = None,
    ) -> None:
        self.sigma = as_positive_number("sigma", sigma)
        self.length = as_length(normalize)
        self.threshold = as_positive_number("threshold", threshold)
        self.alphas = tuple(as_positive_number("every entry of alphas", alpha) for alpha in as_tuple("alphas", alphas))
        if len({f"{alpha:g}" for alpha in self.alphas}) < len(self.alphas):
            raise ValueError(f"alphas must be different numbers, got {list(self.alphas)}")
        self.flip_test = as_switch("flip_test", flip_test)
        if flip_pairs is not None and not isinstance(flip_pairs, Mapping):
            raise ValueError(f"flip_pairs must map names of points to names of points, got {flip_pairs!r}")
        if flip_pairs is not None and not self.flip_test:
            raise ValueError("flip_pairs are for flip_test: true, and would do nothing here; leave them out")
        self.flip_pairs = None if flip_pairs is None else {str(a): str(b) for a, b in flip_pairs.items()}

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was built with."""
        length: Any = self.length
        if not isinstance(length, str):
            length = [side[0] if len(side) == 1 else list(side) for side in length]
        return {
            "sigma": self.sigma, "normalize": length, "threshold": self.threshold, "alphas": list(self.alphas),
            "flip_test": self.flip_test, "flip_pairs": self.flip_pairs,
        }  # fmt: skip

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The normalised mean error, the error in pixels, the PCK of each alpha, failures, and the area."""
        shares = {f"pck@{alpha:g}": (True, f"PCK@{alpha:g}") for alpha in self.alphas}
        kinds = {"nme": (False, "NME"), **shares, "failure_rate": (False, "failures"), "auc": (True, "AUC")}
        found = {
            name: Metric(partial(self._compute, name), larger, share=True, title=title)
            for name, (larger, title) in kinds.items()
        }
        error = Metric(partial(self._compute, "error"), larger_is_better=False, title="error in pixels")
        return {"nme": found.pop("nme"), "error": error, **found}

    def output_names(self, images: ImageDataset) -> tuple[str, ...]:
        """The names of the points.

        Raises:
            ValueError: they lack what `normalize` or `flip_test` needs, or the data set has others change places.
        """
        names = images.class_names
        # Names of stand-ins are made up.
        if getattr(images, "target_type", None) is Points:
            first: Any = next(filter(None, (images[place] for place in range(len(images)))), None)
            check_length(self.length, names, None if first is None else first.label)
            swap = self._swap(names) if self.flip_test else None
            if swap is not None and first is not None and first.label.swap not in (None, swap):
                raise ValueError(
                    "task.arguments.flip_pairs must be those of the data set: data.flip_pairs, or those that its names "
                    "say"
                )
        return names

    def stand_in(self) -> Points:
        """One point."""
        return Points(torch.full((1, 2), 0.5), torch.ones(1, dtype=torch.bool), (1, 1))

    def losses(self, outputs: Any, labels: Sequence[Points]) -> Tensor:
        """(B,) mean squared errors of the maps of visible points.

        Args:
            outputs: heat maps (B, K, h, w); or a head's own losses, (B,) by name, which are added up.
            labels: B records of K points, in pixels of the input.

        Raises:
            ValueError: another number of points.
        """
        if isinstance(outputs, Mapping):
            return torch.stack(list(outputs.values())).sum(dim=0)
        points, visible = (torch.stack([getattr(one, name) for one in labels]) for name in ("points", "visible"))
        targets = heatmap_targets(points, visible, outputs.shape[2:], labels[0].size, self.sigma)
        return heatmap_mse(outputs, targets, visible)

    def counts(self, outputs: Any, labels: Sequence[Points]) -> Sequence[Tensor]:
        """Nothing is counted in training."""
        return []

    def rates(self, counts: Mapping[str, float], images: int) -> dict[str, float]:
        """None."""
        return {}

    def infer(self, classifier: Any, images: Tensor, ids: Tensor, origins: Sequence[Origin]) -> list[Landmarks]:
        """The points of the images.

        Args:
            classifier: in evaluation mode, with a head that gives heat maps.
            images: (B, 3, h, w) in [-1, 1].
            ids: (B,) int64.
            origins: B.

        Raises:
            ValueError: heat maps that are not finite, or points that change places are not known.
        """
        maps = classifier(images, ids).float()
        if self.flip_test:
            mirrored = classifier(images.flip(3), ids).float()
            maps = (maps + mirrored.flip(3)[:, list(self._swap(classifier.class_names))]) / 2
        found = decode_heatmaps(finite("heat maps", maps), images.shape[2:], self.sigma)
        points, heights = (part.cpu() for part in found)
        return [Landmarks(origin.points(points[i]), heights[i]) for i, origin in enumerate(origins)]

    def score(self, prediction: Landmarks, target: Target, names: Sequence[str]) -> KeypointScore:
        """Prediction and truth, and the length of the image."""
        assert isinstance(target, Points)
        return KeypointScore(
            prediction.points.numpy(),
            prediction.confidence.numpy(),
            target.points.cpu().numpy(),
            target.visible.cpu().numpy(),
            length_of(self.length, target, names),
        )

    def measure(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str], *, extra: Iterable[str] = ()
    ) -> KeypointMetrics:
        """See `keypoint_metrics`.

        Raises:
            ValueError: no image has a visible point and a length, or a metric of one's own is not finite.
        """
        return replace(self._measured(outputs, names), extra=own_metrics(self, extra, outputs, labels))

    def _measured(self, scores: NDArray[Any], names: Sequence[str]) -> KeypointMetrics:
        predicted, true, visible = (
            np.stack([getattr(one, name) for one in scores]) for name in ("predicted", "true", "visible")
        )
        lengths = np.asarray([score.length for score in scores])
        return keypoint_metrics(
            predicted, true, visible, lengths, point_names=names, threshold=self.threshold, alphas=self.alphas
        )

    def _compute(self, name: str, scores: NDArray[Any], labels: NDArray[Any]) -> float:
        value = self._measured(scores, [str(number) for number in range(len(scores[0].visible))]).value(name)
        assert value is not None
        return value

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Errors, PCK, failures and the area, and how many images were left out."""
        return readable(record)

    def write_tables(self, folder: Path, measured: KeypointMetrics, outputs: Outputs, images: ImageDataset) -> None:
        """Points and images as tables, the curve of the errors, and the errors of each image."""
        write_tables(folder, measured, outputs, images, self.threshold)

    def columns(self, names: Sequence[str]) -> list[str]:
        """Name of a point, x and y in pixels of the image (0.5 is the centre of the first one), and its confidence."""
        return ["point", "x", "y", "confidence"]

    def rows(self, prediction: Landmarks, names: Sequence[str]) -> list[list[Any]]:
        """One row a point, as `columns` says."""
        places = zip(names, prediction.points.tolist(), prediction.confidence.tolist(), strict=True)
        return [[name, x, y, confidence] for name, (x, y), confidence in places]

    def merit(self, score: KeypointScore) -> float:
        """Minus the image's NME; minus infinity where nothing can be measured."""
        return float("-inf") if np.isnan(score.nme) else -score.nme

    def interval(self, kept: Sequence[Kept], *, resamples: int, seed: int) -> Interval:
        """Of the mean NME, over the images that have one."""
        errors = _mean_of_models(kept)
        return bootstrap_mean(errors[~np.isnan(errors)], resamples=resamples, seed=seed)

    def difference(
        self, kept: Sequence[Kept], others: Sequence[Kept], *, resamples: int, seed: int
    ) -> PairedDifference:
        """Of the mean NME, over the images that have one on both sides."""
        one, other = _mean_of_models(kept), _mean_of_models(others)
        both = ~np.isnan(one) & ~np.isnan(other)
        return paired_bootstrap(one[both], other[both], resamples=resamples, seed=seed)

    def write(self, folder: Path, stem: str, picture: Any, prediction: Landmarks, names: Sequence[str]) -> None:
        """Writes `overlays/STEM.jpg`, the image with the points."""
        path = folder / f"overlays/{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        marked(picture, prediction.points, names).save(path)

    def finish(self, folder: Path, stems: Sequence[str], names: Sequence[str]) -> None:
        """Nothing: the table of predictions holds all points."""

    def sections(self, measured: KeypointMetrics, folder: Path) -> list[Section]:
        """Numbers of all points, and the curve of the errors."""
        return sections(measured, folder)

    def draw(self, path: Path, picture: Any, target: Target, prediction: Landmarks, names: Sequence[str]) -> None:
        """Image, truth, prediction, and lines from each true point to the one that was found."""
        assert isinstance(target, Points)
        draw_keypoints(path, picture, target, prediction, names)

    def _swap(self, names: Sequence[str]) -> tuple[int, ...]:
        pairs = self.flip_pairs
        if pairs is None and tuple(names) == WFLW_NAMES:
            pairs = WFLW_PAIRS
        return _swap(tuple(names), None if pairs is None else tuple(pairs.items()))


def _mean_of_models(kept: Sequence[Kept]) -> NDArray[np.float64]:
    """(N,) NME of each image; not a number where a model has none."""
    found: NDArray[np.float64] = np.mean([one["nme"] for one in kept], axis=0)
    return found


@cache
def _swap(names: tuple[str, ...], pairs: tuple[tuple[str, str], ...] | None) -> tuple[int, ...]:
    """The place of the point that each one is in a mirrored image; kept, since what is unusual is logged."""
    found = swap_of(names, None if pairs is None else dict(pairs), "task.arguments")
    if found is None:
        raise ValueError(
            "flip_test needs to know which points change places in a mirrored image, and no two of the names "
            f"{', '.join(names[:5])}, … differ in left and right only; set task.arguments.flip_pairs, {{}}"
            " where none do"
        )
    return found
