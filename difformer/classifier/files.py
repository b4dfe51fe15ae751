"""The file a classifier is kept in: safetensors whose metadata says how to rebuild it on its backbone."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from difformer._version import __version__
from difformer.backbones import Backbone, identity
from difformer.checkpoints import (
    CheckpointError,
    read_weights,
    verify_shipped,
    weights_digest,
)
from difformer.checkpoints.outline import outlined
from difformer.checkpoints.store import CLASSIFIER_FORMAT, check_description, verify_digest, write_described
from difformer.config import from_mapping
from difformer.data import Preprocessing
from difformer.data.joint import Whole
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.heads import HEADS, Head
from difformer.registry import UntrustedError, path_of
from difformer.taps import FeatureKey
from difformer.tasks import Classification, Task, find_task
from difformer.tasks.registry import check_head

_EXTRACTORS = {cls.__name__: cls for cls in (FeatureExtractor, FeedbackExtractor)}
# Files name the heads of this package by their classes.
_HEADS = {cls.__name__: cls for cls in map(HEADS.find, HEADS)}

# The entries of a description; all are needed to rebuild the classifier and to identify its backbone.
_DESCRIPTION: Mapping[str, tuple[type, ...]] = {
    "backbone": (dict,),
    "extractor": (dict,),
    "head": (dict,),
    "class_names": (list,),
    "preprocessing": (dict, type(None)),
    "metadata": (dict,),
}
_PARTS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "backbone": {"name": (str,), "digest": (str, type(None)), "config": (dict, type(None)),
                 "schedule": (dict, type(None))},
    "extractor": {"type": (str,), "arguments": (dict,)},
    "head": {"type": (str,), "keys": (list,), "arguments": (dict,)},
}  # fmt: skip
# Only in files of other tasks than classification.
_TASK: Mapping[str, tuple[type, ...]] = {"type": (str,), "arguments": (dict,)}


class Parts(Protocol):
    """What a file is written from: a `DiffusionClassifier`."""

    extractor: Any
    head: Any
    task: Task
    class_names: tuple[str, ...]

    @property
    def preprocessing(self) -> Preprocessing | Whole | None:
        """How image files are read."""
        ...

    def trained_state(self) -> Mapping[str, Tensor]:
        """The trained weights."""
        ...


def save_classifier(path: str | Path, classifier: Parts, **metadata: Any) -> None:
    """Writes a classifier as one safetensors file: head and feedback weights, and how to rebuild the rest.

    The file does not hold the backbone, only its name and digest, and its family if it is not of this package. An
    existing file is replaced once the new one is complete.

    Args:
        path: the file; its folder must exist.
        classifier: with an extractor of this package; a custom head is stored by module and name.
        metadata: anything else to keep, such as metrics, as JSON types; numbers must be finite.

    Raises:
        ValueError: a head that cannot be imported again, an extractor of another kind, metadata that JSON cannot hold,
            a task that does not read what the head gives, or a head that learned from images of several sizes, while no
            `classifier.preprocessing` is set.
        OSError: it cannot be written; an existing file is unchanged.
    """
    write_classifier(Path(path), classifier.trained_state(), describe(classifier, metadata))


def write_classifier(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Writes a classifier's file from its parts; an existing file is replaced once the new one is complete.

    Args:
        path: the file; its folder must exist.
        state: weights of head and feedback layers.
        description: from `describe`, or of another file.

    Raises:
        OSError: it cannot be written; an existing file is unchanged.
    """
    entries = {"description": json.dumps(description)}
    write_described(path, state, CLASSIFIER_FORMAT, entries, digest=weights_digest(state), overwrite=True)


@contextmanager
def rebuilding(source: str) -> Iterator[None]:
    """Turns errors inside into a `CheckpointError` that says that a file's description does not fit."""
    try:
        yield
    except (CheckpointError, UntrustedError):
        raise
    # The last two come from numbers too large for any tensor, and from printing what is nested too deeply.
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{source} cannot be rebuilt on this backbone: {error}") from error


def read_classifier(path: Path, *, verify: bool = True) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The parts of a classifier's file: the weights of head and feedback layers, and its description.

    Args:
        path: the file.
        verify: check the digests.

    Raises:
        FileNotFoundError, CheckpointError: as `load_classifier`.
    """
    if verify:
        verify_shipped(path)
    weights = read_weights(path, verify=verify)
    description = _parse(weights.metadata, str(path), verify=verify)
    if verify:
        verify_digest(weights, weights.metadata.get("weights_sha256", ""))
    return weights.state, description


def is_classifier_file(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata is that of a classifier."""
    return metadata.get("format") == CLASSIFIER_FORMAT


def read_description(path: str | Path) -> dict[str, Any]:
    """The description in a classifier file, without its backbone: extractor, head, classes, metrics, ….

    Raises:
        FileNotFoundError, CheckpointError: as `load_classifier`.
    """
    return _parse(read_weights(Path(path), verify=False, mapped=True).metadata, str(path))


def describe(classifier: Parts, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a classifier in its file, as JSON types.

    Raises:
        ValueError: as `save_classifier`.
    """
    extractor, head, backbone = classifier.extractor, classifier.head, classifier.extractor.backbone
    if type(extractor) not in _EXTRACTORS.values():
        raise ValueError(f"{type(extractor).__name__} cannot be saved; only {', '.join(_EXTRACTORS)} can be rebuilt")
    if not isinstance(head, Head):
        raise ValueError(
            f"{type(head).__name__} cannot be saved: a head needs specs, num_classes, arguments, map_sizes"
        )
    check_head(classifier.task, head)
    kind: Any = type(head)
    head_type = kind.__name__ if kind in _HEADS.values() else path_of(kind, "head")
    keys = [asdict(key) for key in head.specs]
    description: dict[str, Any] = {
        "difformer_version": __version__,
        "backbone": identity(backbone),
        "extractor": {"type": type(extractor).__name__, "arguments": extractor.arguments},
        "head": {"type": head_type, "keys": keys, "arguments": head.arguments},
        "class_names": list(classifier.class_names),
        "preprocessing": asdict(classifier.preprocessing) if classifier.preprocessing else None,
        "metadata": dict(metadata),
    }
    if type(classifier.task) is not Classification:
        arguments = classifier.task.arguments
        description["task"] = {"type": path_of(type(classifier.task), "task"), "arguments": arguments}
    for name, value in metadata.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata {name}={value!r} must be JSON types with finite numbers: {error}") from error
    try:
        json.dumps(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"this classifier cannot be stored as JSON: {error}") from error
    return description


def _parse(metadata: Mapping[str, str], source: str, *, verify: bool = True) -> dict[str, Any]:
    if not is_classifier_file(metadata):
        kind = metadata.get("format", "no classifier")
        raise CheckpointError(f"{source} is {kind}, not a classifier; backbones are opened with create_backbone")
    check_description(metadata, source, verify=verify)
    try:
        description: Any = json.loads(metadata.get("description", "null"))
        _check_entries(description, _DESCRIPTION, "the description")
        for part, entries in _PARTS.items():
            _check_entries(description[part], entries, part)
        if "family" in description["backbone"]:
            _check_entries(description["backbone"], {"family": (str,)}, "backbone")
        _check_all(description["class_names"], str, "class_names")
        _check_all(description["head"]["keys"], dict, "head.keys")
        if "task" in description:
            _check_entries(description["task"], _TASK, "task")
        if description["preprocessing"] is not None:
            stored_preprocessing(description)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: its metadata is malformed: {error}") from error
    return description


def _check_entries(values: Any, expected: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raises ValueError when a part of a description lacks an entry, or has one of another kind."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be keys and values, got {type(values).__name__}")
    for name, kinds in expected.items():
        if name not in values:
            raise ValueError(f"{where} lacks {name!r}")
        if not isinstance(values[name], kinds):
            raise ValueError(f"{name} of {where} must not be {type(values[name]).__name__}")


def _check_all(values: Iterable[Any], kind: type, where: str) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise ValueError(f"{where} must hold only {kind.__name__}, got {type(value).__name__}")


def check_same_backbone(backbone: Backbone, expected: Mapping[str, Any], source: str) -> None:
    """Raises CheckpointError when it is not the backbone that a file's description expects."""
    found = identity(backbone)
    for part in dict.fromkeys((*expected, *found)):
        # Earlier files of custom backbones may lack entries.
        unsaid = "family" not in expected and expected.get(part) is None
        if part != "name" and not unsaid and found.get(part) != expected.get(part):
            raise CheckpointError(
                f"{source} was trained on the backbone {expected['name']} with {part} {expected.get(part)}, but the "
                f"one given, {found['name']}, has {found.get(part)}; give the right one, or verify=False to try"
            )


def build_parts(
    description: Mapping[str, Any], backbone: Backbone, tensors: int, source: str, trust: str | Iterable[str]
) -> tuple[FeatureExtractor | FeedbackExtractor, nn.Module]:
    """Extractor and head from a description, the head's weights without values if it is of this package.

    Args:
        description: of a file.
        backbone: the one that the features are read from.
        tensors: how many the file holds.
        source: the file, for messages.
        trust: as for `load_classifier`.
    """
    extractor, head, names = (description[part] for part in ("extractor", "head", "class_names"))
    kind, ours, name = extractor["type"], head["type"] in _HEADS, head["type"]
    if not ours and ":" not in name:
        raise ValueError(f"this version knows no head {name!r}, only {', '.join(_HEADS)}")
    head_type: Any = _HEADS[name] if ours else HEADS.find_trusted(name, trust)
    if not (isinstance(head_type, type) and issubclass(head_type, nn.Module)):
        raise ValueError(f"the head {name} is no torch.nn.Module")
    if kind not in _EXTRACTORS:
        raise ValueError(f"this version knows no extractor {kind!r}, only {', '.join(_EXTRACTORS)}")
    keys = [FeatureKey(**values) for values in head["keys"]]
    with outlined(tensors, len(keys), source):
        built = _EXTRACTORS[kind](backbone, **extractor["arguments"])
        missing = [key for key in keys if key not in built.specs]
        if missing:
            raise ValueError(f"the head reads {missing}, but the extractor gives {list(built.specs)}")
        specs = {key: built.specs[key] for key in keys}
        if ours:
            return built, head_type(specs, len(names), **head["arguments"])
    # Custom heads may hold tensors that are not in the file, so they are built with values.
    return built, head_type(specs, len(names), **head["arguments"])


def stored_preprocessing(description: Mapping[str, Any]) -> Preprocessing | Whole | None:
    """How a file's description says that images are read; None where it does not.

    Raises:
        ValueError: its values are wrong.
    """
    values = description["preprocessing"]
    kind: Any = Whole if values and "fit" in values else Preprocessing
    return None if values is None else from_mapping(kind, values)


def stored_task(description: Mapping[str, Any], trust: str | Iterable[str] = ()) -> Task:
    """The task that a file's description names; classification where it names none.

    Raises:
        UntrustedError, ValueError, ImportError: as `find_task`.
    """
    task = description.get("task", {"type": "classification", "arguments": {}})
    return find_task(task["type"], task["arguments"], trust=[trust] if isinstance(trust, str) else trust)
