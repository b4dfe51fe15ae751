"""What a task is, and what it measures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis import Metric, find_metric
from difformer.data import ImageDataset, Target
from difformer.registry import did_you_mean


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
