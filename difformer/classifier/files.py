"""The file a classifier is kept in: safetensors whose metadata says how to rebuild it on its backbone."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difformer._version import __version__
from difformer.backbones import Backbone, create_backbone
from difformer.checkpoints import (
    CheckpointError,
    load_strictly,
    locate,
    read_weights,
    verify_shipped,
    weights_digest,
    write_weights,
)
from difformer.checkpoints.store import CLASSIFIER_FORMAT
from difformer.classifier.model import DiffusionClassifier
from difformer.config import from_mapping
from difformer.data import Preprocessing
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.heads import AttentionHead, CNNHead, DifFormerHead, LinearHead, MLPHead
from difformer.taps import FeatureKey

FORMAT_VERSION = 1
EXTRACTORS = {cls.__name__: cls for cls in (FeatureExtractor, FeedbackExtractor)}
HEADS = {cls.__name__: cls for cls in (LinearHead, MLPHead, CNNHead, AttentionHead, DifFormerHead)}


def save_classifier(path: str | Path, classifier: DiffusionClassifier, **metadata: Any) -> None:
    """Writes a classifier as one safetensors file: head and feedback weights, and how to rebuild the rest.

    The backbone is not in it; its name and digest are. A file that is there is replaced once the new one is whole.

    Args:
        path: the file; its folder must exist.
        classifier: made of this package's extractors and heads.
        metadata: anything else to keep, such as metrics, as JSON types; numbers must be finite.

    Raises:
        ValueError: a foreign head or extractor, or metadata that JSON cannot hold.
        OSError: it cannot be written; what was there is untouched.
    """
    state = classifier.trained_state()
    entries = {
        "format": CLASSIFIER_FORMAT,
        "format_version": str(FORMAT_VERSION),
        "description": json.dumps(describe(classifier, metadata)),
        "weights_sha256": weights_digest(state),
    }
    write_weights(Path(path), state, entries, overwrite=True)


def load_classifier(
    path: str | Path,
    *,
    backbone: Backbone | str | Path | None = None,
    folder: str | Path | None = None,
    download: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    cls: type[DiffusionClassifier] = DiffusionClassifier,
) -> DiffusionClassifier:
    """Brings a saved classifier back, in evaluation mode.

    Args:
        path: the file, `hf://owner/name`, or the name of a classifier that ships, such as `adm_elpv/difformer`.
        backbone: the backbone it was trained on, or where to find it; by its name in the file when left out.
        folder: where named weights lie, in place of the usual folders.
        download: whether what is not on this machine may be fetched.
        device: where it is to run; by default where the backbone given is, or the CPU.
        dtype: precision of the backbone's convolutions, where it is opened here.
        verify: check the digests of the file and of the backbone.
        cls: what to build: `DiffusionClassifier`, or a subclass that is built with the same arguments.

    Raises:
        FileNotFoundError: the file or the backbone is not there.
        CheckpointError: the file is damaged or no classifier, or the backbone is not the one it was trained on.
    """
    file = locate(path, folder=Path(folder) if folder else None, download=download)
    if verify:
        verify_shipped(file)
    weights = read_weights(file, verify=verify)
    description = _parse(weights.metadata, str(file))
    if verify and weights_digest(weights.state) != weights.metadata.get("weights_sha256"):
        raise CheckpointError(f"{file} is corrupt: its weights are not those its metadata was written for")
    if backbone is None or isinstance(backbone, str | Path):
        name = description["backbone"]["name"] if backbone is None else backbone
        backbone = create_backbone(name, folder=folder, download=download, device=device, dtype=dtype, verify=verify)
    if verify:
        _check_backbone(backbone, description["backbone"], str(file))
    classifier = _build(description, backbone, str(file), cls)
    load_strictly(classifier.trained_parts, weights.state, str(file))
    if device is None and isinstance(backbone, nn.Module):
        device = next(backbone.parameters()).device
    return classifier.to(device or "cpu").eval()


def is_classifier_file(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata is that of a classifier."""
    return metadata.get("format") == CLASSIFIER_FORMAT


def read_description(path: str | Path) -> dict[str, Any]:
    """Everything a classifier file says of itself, without its backbone: extractor, head, classes, metrics, ….

    Raises:
        FileNotFoundError, CheckpointError: as `load_classifier`.
    """
    return _parse(read_weights(Path(path)).metadata, str(path))


def describe(classifier: DiffusionClassifier, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a classifier's file says of it beside the weights, in JSON types.

    Raises:
        ValueError: as `save_classifier`.
    """
    extractor, head, backbone = classifier.extractor, classifier.head, classifier.backbone
    for part, known in ((extractor, EXTRACTORS), (head, HEADS)):
        if type(part) not in known.values():
            raise ValueError(f"{type(part).__name__} cannot be saved; only {', '.join(known)} can be rebuilt")
    keys = [asdict(key) for key in head.specs]  # type: ignore[union-attr]
    description: dict[str, Any] = {
        "difformer_version": __version__,
        "backbone": _identity(backbone),
        "extractor": {"type": type(extractor).__name__, "arguments": extractor.arguments},
        "head": {"type": type(head).__name__, "keys": keys, "arguments": head.arguments},
        "class_names": list(classifier.class_names),
        "preprocessing": asdict(classifier.preprocessing) if classifier.preprocessing else None,
        "metadata": dict(metadata),
    }
    for name, value in metadata.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata {name}={value!r} must be of JSON's types, numbers finite: {error}") from error
    try:
        json.dumps(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"this classifier cannot be written down: {error}") from error
    return description


def _parse(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    if not is_classifier_file(metadata):
        kind = metadata.get("format", "no classifier")
        raise CheckpointError(f"{source} is {kind}, not a classifier; backbones are opened with create_backbone")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{source} has classifier format {metadata.get('format_version')}; this version of difformer reads "
            f"{FORMAT_VERSION}; update difformer"
        )
    try:
        description: dict[str, Any] = json.loads(metadata["description"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: its metadata is malformed: {error!r}") from error
    if not isinstance(description, dict) or "name" not in (description.get("backbone") or {}):
        raise CheckpointError(f"{source}: its metadata is malformed: it does not name a backbone")
    return description


def _identity(backbone: Backbone) -> dict[str, Any]:
    """What tells a backbone from others; the same weights mean something else under another configuration."""
    config = getattr(backbone, "config", None)
    schedule = getattr(backbone.schedule, "to_dict", None)
    return {
        "name": getattr(backbone, "name", "unnamed"),
        "digest": getattr(backbone, "digest", None),
        # Through JSON, so that what is given compares with what was stored.
        "config": json.loads(json.dumps(asdict(config))) if config is not None else None,
        "schedule": schedule() if schedule is not None else None,
    }


def _check_backbone(backbone: Backbone, expected: Mapping[str, Any], source: str) -> None:
    found = _identity(backbone)
    for part in ("digest", "config", "schedule"):
        if expected.get(part) is not None and found[part] != expected[part]:
            raise CheckpointError(
                f"{source} was trained on the backbone {expected['name']} with {part} {expected[part]}, but the one "
                f"given, {found['name']}, has {found[part]}; give the right one, or verify=False to try"
            )


def _build(
    description: Mapping[str, Any], backbone: Backbone, source: str, cls: type[DiffusionClassifier]
) -> DiffusionClassifier:
    """An untrained classifier as a file describes it."""
    try:
        extractor_type = EXTRACTORS[description["extractor"]["type"]]
        extractor = extractor_type(backbone, **description["extractor"]["arguments"])
        keys = [FeatureKey(**key) for key in description["head"]["keys"]]
        specs = {key: extractor.specs[key] for key in keys}
        names = description["class_names"]
        head = HEADS[description["head"]["type"]](specs, len(names), **description["head"]["arguments"])
        preprocessing = description["preprocessing"] and from_mapping(Preprocessing, description["preprocessing"])
        return cls(extractor, head, class_names=names, preprocessing=preprocessing)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be rebuilt on this backbone: {error}") from error
