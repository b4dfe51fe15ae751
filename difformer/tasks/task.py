"""What a task is, and all tasks by name."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis import Metric, find_metric
from difformer.config import as_call
from difformer.data import ImageDataset
from difformer.heads import OUTPUTS, heads_that_give, what_it_gives
from difformer.registry import Registry, did_you_mean


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model gives for a split.

    Attributes:
        values: (N, D) float32 outputs or features, in the order of the data set.
        labels: (N,) int64, or the targets of the data set.
        ids: (N,) int64.
        skipped: ids of the images that could not be read, which are not among the N.
    """

    values: NDArray[np.float32]
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
    logits (B, len(names)) says so by an attribute `reads`, which is the `gives` of such heads: see
    `difformer.heads.OUTPUTS`. Its `outputs` below are then what these heads give: for "maps" and "points" a tensor
    (B, len(names), h, w), for "boxes" a list of `difformer.heads.Detections`, which training and
    `DiffusionClassifier.predict` do not pass on yet.

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

    def stand_in(self) -> Tensor | None:
        """An example of a target, for trials without data; None where labels are class numbers."""
        ...

    def losses(self, outputs: Any, labels: Tensor) -> Tensor:
        """(B,) losses.

        Args:
            outputs: of the head: (B, len(names)), or what `reads` says.
            labels: (B, …) as the data set gives them.
        """
        ...

    def counts(self, outputs: Any, labels: Tensor) -> Sequence[Tensor]:
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
            outputs: (N, len(names)) float32, or what `reads` says of N images.
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

    def predictions(self, outputs: Any, names: Sequence[str]) -> list[Any]:
        """The prediction for each image.

        Args:
            outputs: (B, len(names)) finite float32 on the CPU, or what `reads` says.
            names: of the outputs.
        """
        ...

    def columns(self, names: Sequence[str]) -> list[str]:
        """The header of a table of predictions."""
        ...

    def row(self, prediction: Any) -> list[Any]:
        """A prediction as a row of such a table."""
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
    if not isinstance(task, Task):
        wanted = ", ".join(one for one in dir(Task) if one[0] != "_" and not hasattr(task, one))
        raise ValueError(f"the task {name} must be as difformer.tasks.Task says; {type(task).__name__} lacks {wanted}")
    if not task.metrics:
        raise ValueError(f"the task {name} has no metrics; its metrics must name at least one")
    return task


def check_head(task: Task, head: Any, name: str | None = None) -> None:
    """Raises ValueError where a head gives something else than a task reads, or one of them names no output.

    Args:
        task: any.
        head: a head or its class.
        name: of the head, as a recipe has it; None where there is no recipe, for what is advised.
    """
    gives, reads = what_it_gives(head), getattr(task, "reads", "logits")
    if reads not in OUTPUTS:
        raise ValueError(f"{type(task).__name__}.reads: unknown output {reads!r}; {did_you_mean(str(reads), OUTPUTS)}")
    if gives == reads:
        return
    (given, reader), (read, _) = OUTPUTS[gives], OUTPUTS[reads]
    suited = f"the task {reader}"
    if reader not in TASKS:
        suited = f"a task of your own with reads = {gives!r}, since the task {reader} is not built in yet"
    fitting = heads_that_give(reads)
    others = f" ({', '.join(fitting)})" if fitting else ""
    if name is None:
        subject, remedy = type(head).__name__, f"give DiffusionClassifier another head, or as its task {suited}"
    else:
        subject, remedy = f"head.name: {name}", f"choose another head.name{others}, or as task.name {suited}"
    raise ValueError(f"{subject} gives {given}, and the task {type(task).__name__} reads {read}; {remedy}")


def check_labels(task: Task, images: Any) -> None:
    """Raises ValueError if a data set does not give what a task predicts.

    Args:
        task: any.
        images: a split.
    """
    if getattr(images, "target_type", None) is not None:
        raise ValueError(
            f"{images} has a {images.target_type.__name__} an image, which the task {type(task).__name__} does not "
            "predict; choose another data set, or train with another task.name"
        )
    stand_in = task.stand_in()
    wanted = None if stand_in is None else tuple(stand_in.shape)
    found = None if images.targets is None else images.targets.shape[1:]
    if found != wanted:
        has = "classes and no targets" if found is None else f"targets of shape {found}"
        predicts = "classes" if wanted is None else f"{wanted}"
        raise ValueError(
            f"{images} has {has}, and the task {type(task).__name__} predicts {predicts}; choose another data set, "
            "or train with another task.name"
        )


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
