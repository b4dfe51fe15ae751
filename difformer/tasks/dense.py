"""What a task of maps, boxes or points is, and the numbers of its images that an evaluation keeps."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis import Interval, PairedDifference
from difformer.data import Origin, Target
from difformer.report.page import Section
from difformer.tasks.task import Task

# The file in which an evaluation of a dense task keeps its images' ids and the numbers that a comparison resamples.
SCORES = "scores.npz"
# What it holds: arrays by name.
Kept: TypeAlias = Mapping[str, NDArray[Any]]


@runtime_checkable
class DenseTask(Task, Protocol):
    """A task whose heads give maps, boxes or points, and whose data sets have masks, boxes or points.

    Evaluation and prediction go through `infer`, image by image at its own size, and an evaluation keeps of each image
    what `score` gives: the outputs of a whole split would not fit into the memory.

    Attributes:
        reads: what it reads of a head, its `gives`: see `difformer.heads.OUTPUTS`.
    """

    @property
    def reads(self) -> str: ...

    def infer(self, classifier: Any, images: Tensor, ids: Tensor, origins: Sequence[Origin]) -> list[Any]:
        """Predictions at the images' own sizes, which do not depend on what else is in the batch.

        Args:
            classifier: a `DiffusionClassifier` in evaluation mode.
            images: (B, 3, h, w) in [-1, 1], on the classifier's device.
            ids: (B,) int64 stable numbers.
            origins: one an image: how predictions go back to it.
        """
        ...

    def score(self, prediction: Any, target: Target, names: Sequence[str]) -> Any:
        """What an evaluation keeps of an image: a small record that can be pickled.

        Args:
            prediction: from `infer`.
            target: of the image at its own size.
            names: of the outputs.
        """
        ...

    def merit(self, score: Any) -> float:
        """How good one image's score is, to find the best and the worst images; larger is better."""
        ...

    def interval(self, kept: Sequence[Kept], *, resamples: int, seed: int) -> Interval:
        """The first metric, with a bootstrap interval over images.

        Args:
            kept: what `write_tables` put into the file `SCORES`; of several models for the same images, the mean of
                their numbers is meant, and the images are resampled together.
            resamples, seed: of the bootstrap.
        """
        ...

    def difference(
        self, kept: Sequence[Kept], others: Sequence[Kept], *, resamples: int, seed: int
    ) -> PairedDifference:
        """The first metric less that of other models for the same images, which are resampled together."""
        ...

    def rows(self, prediction: Any, names: Sequence[str]) -> list[list[Any]]:
        """A prediction as rows of a table with these `columns`; there may be none."""
        ...

    def write(self, folder: Path, stem: str, picture: Any, prediction: Any, names: Sequence[str]) -> None:
        """Writes the files of a prediction, such as a mask, and the picture with the prediction on it.

        Args:
            folder: of all predictions.
            stem: of the files' names; may hold folders, which are made.
            picture: RGB PIL image.
            prediction: from `infer`.
            names: of the outputs.
        """
        ...

    def finish(self, folder: Path, stems: Sequence[str], names: Sequence[str]) -> None:
        """Called once all predictions are written; may put them together into one file.

        Args:
            folder: of all predictions.
            stems: of the images that were predicted, in their order.
            names: of the outputs.
        """
        ...

    def sections(self, measured: Any, folder: Path) -> list[Section]:
        """What the page of an evaluation shows besides images.

        Args:
            measured: from `measure`.
            folder: with what `write_tables` wrote.
        """
        ...

    def draw(self, path: Path, picture: Any, target: Target, prediction: Any, names: Sequence[str]) -> None:
        """Draws an image, what is to be found in it, and what was found, side by side, as a PNG.

        Args:
            path: the file.
            picture: RGB PIL image.
            target: of the image at its own size.
            prediction: from `infer`.
            names: of the outputs.
        """
        ...


def interval_of(task: DenseTask, kept: Sequence[Kept], *, resamples: int, seed: int) -> Interval | None:
    """`DenseTask.interval`; None where fewer than half of the resamples have what the metric counts."""
    try:
        found = task.interval(kept, resamples=resamples, seed=seed)
    except ValueError:
        return None
    return found if found.resamples >= resamples / 2 else None


def difference_of(
    task: DenseTask, kept: Sequence[Kept], others: Sequence[Kept], *, resamples: int, seed: int
) -> PairedDifference | None:
    """`DenseTask.difference`; None as for `interval_of`."""
    try:
        found = task.difference(kept, others, resamples=resamples, seed=seed)
    except ValueError:
        return None
    return found if found.difference.resamples >= resamples / 2 else None


def read_scores(folder: Path) -> dict[str, NDArray[Any]]:
    """What an evaluation of a dense task keeps of its images in the file `SCORES`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged.
    """
    try:
        with np.load(folder / SCORES, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise ValueError(
            f"{folder / SCORES} is damaged ({error}); `difformer eval … --overwrite` makes it again"
        ) from error
