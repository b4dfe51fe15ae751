"""What a task is, and all tasks by name."""

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis import Interval, Metric, PairedDifference, find_metric
from difformer.config import Size, as_call, sides
from difformer.data import ImageDataset, Mask, Origin, Target
from difformer.data.targets import as_example
from difformer.heads import OUTPUTS, heads_that_give, what_it_gives
from difformer.registry import Registry, did_you_mean
from difformer.report.page import Section

# The file in which an evaluation of a dense task keeps its images' ids and the numbers that a comparison resamples.
SCORES = "scores.npz"


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model gives for a split.

    Attributes:
        values: (N, D) float32 outputs or features, in the order of the data set; of a dense task the (N,) records that
            its `score` gave.
        labels: (N,) int64, or the targets of the data set; with masks, boxes or points, which `score` has seen, 0.
        ids: (N,) int64.
        skipped: ids of the images that could not be read, which are not among the N.
    """

    values: NDArray[Any]
    labels: NDArray[Any]
    ids: NDArray[np.int64]
    skipped: tuple[int, ...] = ()


class Measured(Protocol):
    """What was measured of a split."""

    @property
    def num_images(self) -> int:
        """How many images there were."""
        ...

    def value(self, name: str) -> float | None:
        """The number of a metric; None where it has none here."""
        ...

    def summary(self) -> dict[str, float]:
        """The numbers for the record of an epoch, finite floats by metric; each is stored there as `SPLIT_METRIC`."""
        ...

    def to_dict(self, *, tables: bool = True) -> dict[str, Any]:
        """Everything, as JSON types; without `tables`, the long entries that table files hold are left out."""
        ...


@dataclass(frozen=True)
class Measurements:
    """Plain numbers, for tasks that need nothing more.

    Attributes:
        num_images: how many images were measured.
        values: by metric, finite numbers of any type; kept as floats.

    Raises:
        ValueError: a number that is not finite; the message names it.
    """

    num_images: int
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {name: float(value) for name, value in self.values.items()})
        for name, value in self.values.items():
            if not math.isfinite(value):
                raise ValueError(f"every measured number must be finite, but {name} is {value}")

    def value(self, name: str) -> float | None:
        """The number of a metric; None where it was not measured."""
        return self.values.get(name)

    def summary(self) -> dict[str, float]:
        """All of them."""
        return dict(self.values)

    def to_dict(self, *, tables: bool = True) -> dict[str, Any]:
        """`num_images` and the numbers by name."""
        return {"num_images": self.num_images, **self.values}


@runtime_checkable
class Task(Protocol):
    """What a task must offer: an object `Task(**arguments)`.

    Your own task is used in a recipe as `task.name: package.module:Name`. Its labels are what the data set gives for an
    image: a class number, or a target (see `difformer.data.Source`). A task that reads something else of a head than
    logits (B, len(names)) is a `DenseTask`.

    Attributes:
        arguments: what it was built with, as JSON types; a saved file restores them.
        metrics: by name, at least one; the first is reported first.
        counted: names of what is counted during training besides the loss, see `counts`.
        tables: names of the files that `write_tables` writes.
    """

    @property
    def arguments(self) -> dict[str, Any]: ...

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    @property
    def counted(self) -> tuple[str, ...]: ...

    @property
    def tables(self) -> tuple[str, ...]: ...

    def output_names(self, images: ImageDataset) -> tuple[str, ...]:
        """The names of a head's outputs, one for each.

        Args:
            images: any split.
        """
        ...

    def stand_in(self) -> Tensor | Target | None:
        """An example of a target, for trials without data; None where labels are class numbers."""
        ...

    def losses(self, outputs: Any, labels: Any) -> Tensor:
        """(B,) losses.

        Args:
            outputs: of the head: (B, len(names)), or what `reads` says.
            labels: (B, …) as the data set gives them; of boxes and points the records, one an image.
        """
        ...

    def counts(self, outputs: Any, labels: Any) -> Sequence[Tensor]:
        """The sum over the batch of each quantity in `counted`, on the device of the outputs."""
        ...

    def rates(self, counts: Mapping[str, float], images: int) -> dict[str, float]:
        """Rates from the counts over the images of an epoch, by name of a metric or any other name."""
        ...

    def measure(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str], *, extra: Iterable[str] = ()
    ) -> Measured:
        """Everything that is reported about a split.

        Args:
            outputs: (N, len(names)) float32; of a dense task the (N,) records that `score` gave.
            labels: (N, …).
            names: of the outputs.
            extra: names of further metrics that the result must hold, such as the criterion or those of
                `difformer eval … --metrics`; `task_metric` gives each of them.

        Raises:
            ValueError: outputs that are not finite, or as `task_metric`.
        """
        ...

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Lines for the console from what `Measured.to_dict` gave."""
        ...

    def write_tables(self, folder: Path, measured: Any, outputs: Outputs, images: ImageDataset) -> None:
        """Writes the files that `tables` names.

        Args:
            folder: for the files.
            measured: of these outputs.
            outputs: of the split.
            images: gives their names.
        """
        ...

    def columns(self, names: Sequence[str]) -> list[str]:
        """The header of a table of predictions."""
        ...


@runtime_checkable
class RowTask(Task, Protocol):
    """A task whose heads give a row of numbers an image."""

    def predictions(self, outputs: Any, names: Sequence[str]) -> list[Any]:
        """The prediction for each image.

        Args:
            outputs: (B, len(names)) finite float32 on the CPU.
            names: of the outputs.
        """
        ...

    def row(self, prediction: Any) -> list[Any]:
        """A prediction as a row of a table with these `columns`."""
        ...


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

    def interval(self, kept: Sequence[Mapping[str, NDArray[Any]]], *, resamples: int, seed: int) -> Interval:
        """The first metric, with a bootstrap interval over images.

        Args:
            kept: what `write_tables` put into the file `SCORES`; of several models for the same images, the mean of
                their numbers is meant, and the images are resampled together.
            resamples, seed: of the bootstrap.
        """
        ...

    def difference(
        self,
        kept: Sequence[Mapping[str, NDArray[Any]]],
        others: Sequence[Mapping[str, NDArray[Any]]],
        *,
        resamples: int,
        seed: int,
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


TASKS: Registry[Any] = Registry("task")


def find_task(name: str, arguments: Mapping[str, Any] | None = None, *, trust: Iterable[str] | None = None) -> Task:
    """A task by name, or one of your own as `package.module:Name`.

    Args:
        name: from a recipe or a file.
        arguments: to build it with.
        trust: for a name from a file, packages whose code may run; None for a name that the user gave.

    Raises:
        ValueError: there is no such task, it is something else, it does not take an argument, or has no metrics.
        UntrustedError: it is code of a package that is not trusted.
        ImportError: its module cannot be imported.
    """
    kind = TASKS.find(name) if trust is None else TASKS.find_trusted(name, trust)
    try:
        task = kind(**(arguments or {}))
    except TypeError as error:
        given = as_call(arguments or {}) or "no arguments"
        raise ValueError(f"the task {name} cannot be built with {given}: {error}") from error
    protocol: Any = DenseTask if is_dense(task) else RowTask
    if not isinstance(task, protocol):
        wanted = ", ".join(one for one in dir(protocol) if one[0] != "_" and not hasattr(task, one))
        raise ValueError(
            f"the task {name} must be as difformer.tasks.{protocol.__name__} says; {type(task).__name__} lacks {wanted}"
        )
    if not task.metrics:
        raise ValueError(f"the task {name} has no metrics; its metrics must name at least one")
    return task


def stand_in_labels(task: Task, count: int, size: Size, names: int) -> Any:
    """The labels of a batch, for trials without data, as a data loader gives them.

    Args:
        task: any.
        count: B.
        size: of the images, a side or (h, w).
        names: number of the outputs.
    """
    example = task.stand_in()
    if example is None:
        return torch.zeros(count, dtype=torch.int64)
    if isinstance(example, Tensor):
        return example.expand(count, *example.shape)
    target = as_example(example, sides(size), names)
    return target.labels.long().expand(count, -1, -1) if isinstance(target, Mask) else (target,) * count


def is_dense(task: Any) -> TypeGuard[DenseTask]:
    """Whether a task reads maps, boxes or points of a head."""
    return reads_of(task) != "logits"


def reads_of(task: Any) -> str:
    """What a task reads of a head, a key of `difformer.heads.OUTPUTS`.

    Raises:
        ValueError: its `reads` is none; the message names the nearest.
    """
    reads: str = getattr(task, "reads", "logits")
    if reads not in OUTPUTS:
        raise ValueError(f"{type(task).__name__}.reads: unknown output {reads!r}; {did_you_mean(str(reads), OUTPUTS)}")
    return reads


def check_head(task: Task, head: Any, name: str | None = None) -> None:
    """Raises ValueError where a head gives something else than a task reads, or one of them names no output.

    Args:
        task: any.
        head: a head or its class.
        name: of the head, as a recipe has it; None where there is no recipe, for what is advised.
    """
    gives, reads = what_it_gives(head), reads_of(task)
    if gives == reads:
        return
    (given, reader), (read, _) = OUTPUTS[gives], OUTPUTS[reads]
    fitting = heads_that_give(reads)
    others = f" ({', '.join(fitting)})" if fitting else ""
    if name is None:
        subject, remedy = type(head).__name__, f"give DiffusionClassifier another head, or the task {reader}"
    else:
        subject, remedy = f"head.name: {name}", f"choose another head.name{others}, or task.name: {reader}"
    raise ValueError(f"{subject} gives {given}, and the task {type(task).__name__} reads {read}; {remedy}")


def check_labels(task: Task, images: Any) -> None:
    """Raises ValueError if a data set does not give what a task predicts.

    Args:
        task: any.
        images: a split.
    """
    stand_in, kind = task.stand_in(), getattr(images, "target_type", None)
    dense: Any = None if stand_in is None or isinstance(stand_in, Tensor) else type(stand_in)
    if kind is not dense:
        if kind is None:
            problem = f"has no {dense.__name__} an image, which the task {type(task).__name__} predicts"
        else:
            problem = f"has a {kind.__name__} an image, which the task {type(task).__name__} does not predict"
        raise ValueError(f"{images} {problem}; choose another data set, or train with another task.name")
    if dense is not None:
        return
    wanted = tuple(stand_in.shape) if isinstance(stand_in, Tensor) else None
    found = None if images.targets is None else images.targets.shape[1:]
    if found != wanted:
        has = "classes and no targets" if found is None else f"targets of shape {found}"
        predicts = "classes" if wanted is None else f"{wanted}"
        raise ValueError(
            f"{images} has {has}, and the task {type(task).__name__} predicts {predicts}; choose another data set, "
            "or train with another task.name"
        )


def finite(what: str, outputs: Tensor) -> Tensor:
    """Outputs of a head as they are.

    Raises:
        ValueError: one is not finite; the message says `what` they are.
    """
    if not outputs.isfinite().all():
        raise ValueError(
            f"{what} are not finite: weights of the head are damaged, or the backbone's precision overflows (open it "
            "with dtype float32)"
        )
    return outputs


def own_metrics(task: Task, names: Iterable[str], outputs: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """The numbers of metrics that are the user's own, of those that are asked for.

    Raises:
        ValueError: one is not finite, or as `task_metric`.
    """
    own = [name for name in names if name not in task.metrics]
    found = {name: float(task_metric(task, name, "metrics").compute(outputs, labels)) for name in own}
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"the metric {name} must be a finite number, got {value}")
    return found


def interval_of(
    task: DenseTask, kept: Sequence[Mapping[str, NDArray[Any]]], *, resamples: int, seed: int
) -> Interval | None:
    """`DenseTask.interval`; None where fewer than half of the resamples have what the metric counts."""
    try:
        found = task.interval(kept, resamples=resamples, seed=seed)
    except ValueError:
        return None
    return found if found.resamples >= resamples / 2 else None


def difference_of(
    task: DenseTask,
    kept: Sequence[Mapping[str, NDArray[Any]]],
    others: Sequence[Mapping[str, NDArray[Any]]],
    *,
    resamples: int,
    seed: int,
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


def task_metric(task: Task, name: str, option: str) -> Metric:
    """A metric of a task by name, or one of your own as `package.module:Name`.

    Args:
        task: whose metrics are known by name.
        name: of the metric.
        option: the one that names it, for the message.

    Raises:
        ValueError: there is none, or it is something else.
        ImportError: its module cannot be imported.
    """
    if name not in task.metrics:
        if ":" in name:
            return find_metric(name)
        raise ValueError(
            f"{option} must be a metric of the task, or one of your own as package.module:Name, got {name!r}; "
            f"{did_you_mean(name, task.metrics)}"
        )
    found: Any = task.metrics[name]
    if not isinstance(found, Metric):
        raise ValueError(
            f"the task {type(task).__name__}: {name} must be a difformer.analysis.Metric, got {type(found).__name__}"
        )
    return found
