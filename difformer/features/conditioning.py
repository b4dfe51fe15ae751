"""What backbones are conditioned on besides noise and timestep: the same for all images, or each image's label."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from difformer.backbones import Backbone
from difformer.config import as_integer

_log = getLogger(__name__)

# Instead of a class number: each image's own.
LABEL = "label"


def as_conditioning(name: str, value: Any) -> dict[str, int | str]:
    """A mapping from keywords to class numbers or `label`.

    Args:
        name: of the option, for the message.
        value: what was given; None for nothing.

    Raises:
        ValueError: it is something else.
    """
    given = {} if value is None else value
    wanted = f"{name} must give a class number, or {LABEL} for each image's own, by keyword, such as {{y: 0}}"
    if not isinstance(given, Mapping) or not all(isinstance(keyword, str) for keyword in given):
        raise ValueError(f"{wanted}; got {value!r}")
    found: dict[str, int | str] = {}
    for keyword, number in given.items():
        try:
            found[keyword] = LABEL if number == LABEL else as_integer(f"{name}.{keyword}", number)
        except ValueError as error:
            raise ValueError(f"{wanted}; got {value!r}") from error
    return found


@dataclass(frozen=True)
class Conditioning:
    """What a backbone is conditioned on, unless the call gives something else.

    Attributes:
        values: by keyword of the backbone's passes, a class number for all images, or `label`.

    Raises:
        ValueError: values of another kind.
    """

    values: Mapping[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", as_conditioning("conditioning", self.values))

    @property
    def arguments(self) -> dict[str, Any]:
        """The entry in an extractor's `arguments`, JSON types; none without conditioning, as in all earlier files."""
        return {"conditioning": dict(self.values)} if self.values else {}

    @property
    def labelled(self) -> tuple[str, ...]:
        """The keywords for which each image's label is needed."""
        return tuple(keyword for keyword, value in self.values.items() if value == LABEL)

    def check(self, backbone: Backbone) -> None:
        """Raises ValueError if a backbone takes no such keyword, or has no such class."""
        known = backbone.conditioning
        for keyword, value in self.values.items():
            if keyword not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none; leave extractor.conditioning out"
                raise ValueError(f"{backbone.name} takes no conditioning {keyword!r}: {takes}")
            if isinstance(value, int) and not 0 <= value < known[keyword]:
                raise ValueError(
                    f"conditioning {keyword} must be a class of {backbone.name}, in [0, {known[keyword]}), got {value}"
                )

    def by_label(self, labels: Tensor) -> dict[str, Tensor]:
        """Further keywords of an extractor's call for images whose labels are known, (B,) int64.

        Raises:
            ValueError: labels are needed, and these are no class numbers.
        """
        if self.labelled and (labels.ndim != 1 or labels.is_floating_point()):
            raise ValueError(_NO_CLASSES.format(keyword=self.labelled[0], whose="this data set"))
        return dict.fromkeys(self.labelled, labels)

    def complete(self, given: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """The keywords for a backbone with a batch.

        Args:
            given: keywords of the call, which take precedence.
            images: the batch, on its device.

        Raises:
            ValueError: the labels of the images are needed, and not given.
        """
        if missing := [keyword for keyword in self.labelled if keyword not in given]:
            keyword = missing[0]
            raise ValueError(
                f"these features are conditioned on each image's label, so the call must give them: {keyword}=labels. "
                f"{_REMEDY.format(keyword=keyword)}"
            )
        fixed = {
            keyword: torch.full((len(images),), value, device=images.device)
            for keyword, value in self.values.items()
            if isinstance(value, int) and keyword not in given
        }
        return fixed | {
            keyword: value.to(images.device) if isinstance(value, Tensor) else value for keyword, value in given.items()
        }

    def check_unlabelled(self) -> None:
        """Raises ValueError if images whose class is not known cannot be read."""
        if self.labelled:
            raise ValueError(
                "the features of this classifier are conditioned on each image's label, and the class of these images "
                f"is not known. {_REMEDY.format(keyword=self.labelled[0])}"
            )


_REMEDY = (
    "For images whose class is not known, train with a fixed class number instead: "
    "extractor.conditioning: {{{keyword}: 0}}"
)

_NO_CLASSES = (
    "extractor.conditioning: {{{keyword}: label}} takes labels as classes of the backbone, and those of {whose} are "
    "targets and no classes; give a class number instead, such as {{{keyword}: 0}}"
)


def check_targets(values: Mapping[str, int | str], task: str) -> None:
    """Raises ValueError if features are conditioned on the label of each image, and the labels of a task are targets.

    Args:
        values: the recipe's `extractor.conditioning`.
        task: its name, for the message.
    """
    if labelled := Conditioning(values).labelled:
        raise ValueError(_NO_CLASSES.format(keyword=labelled[0], whose=f"the task {task}"))


def check_conditioning(values: Mapping[str, int | str], backbone: Backbone, num_classes: int | None = None) -> None:
    """Checks, before the first image is read, that a recipe gives everything that a backbone is conditioned on.

    Args:
        values: the recipe's `extractor.conditioning`.
        backbone: the recipe's.
        num_classes: of the data set, whose labels are taken as classes of the backbone; None if it is not known.

    Raises:
        ValueError: an entry is missing, unknown or invalid.
    """
    conditioning = Conditioning(values)
    conditioning.check(backbone)
    for keyword, classes in backbone.conditioning.items():
        if keyword not in conditioning.values:
            raise ValueError(
                f"{backbone.name} is conditioned on one of {classes} classes, so the recipe must say which: "
                f"extractor.conditioning: {{{keyword}: 0}} for one class with all images, or {{{keyword}: {LABEL}}} "
                "for each image's own"
            )
        if keyword in conditioning.labelled and (num_classes or 0) > classes:
            raise ValueError(
                f"extractor.conditioning: {{{keyword}: {LABEL}}} takes the labels of the data set as classes of "
                f"{backbone.name}, which has {classes}, but the data set has {num_classes}; give a class number"
            )


def warn_of_labels(values: Mapping[str, int | str]) -> None:
    """Warns if features are conditioned on the labels that they should predict; each command that reads features warns
    once."""
    if labelled := Conditioning(values).labelled:
        _log.warning(
            "extractor.conditioning: {%s: %s}: the features are told the answer, so their accuracies say nothing about "
            "images whose class is not known",
            labelled[0], LABEL,
        )  # fmt: skip
