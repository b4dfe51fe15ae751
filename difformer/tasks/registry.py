"""All tasks by name, and which heads and data sets fit them."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from difformer.config import Size, as_call, sides
from difformer.data import Mask
from difformer.data.targets import as_example
from difformer.heads import OUTPUTS, heads_that_give, what_it_gives
from difformer.registry import Registry, did_you_mean
from difformer.tasks.dense import DenseTask
from difformer.tasks.task import RowTask, Task

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


def reads_of(task: Any) -> str:
    """What a task reads of a head, a key of `difformer.heads.OUTPUTS`.

    Raises:
        ValueError: its `reads` is none; the message names the nearest.
    """
    reads: str = getattr(task, "reads", "logits")
    if reads not in OUTPUTS:
        raise ValueError(f"{type(task).__name__}.reads: unknown output {reads!r}; {did_you_mean(str(reads), OUTPUTS)}")
    return reads


def is_dense(task: Any) -> TypeGuard[DenseTask]:
    """Whether a task reads maps, boxes or points of a head."""
    return reads_of(task) != "logits"


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
