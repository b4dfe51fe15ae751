"""Our own backbone files: safetensors whose metadata says everything else, so that the file alone is enough."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from difformer._version import __version__
from difformer.checkpoints.weights import CheckpointError, Weights, weights_digest, write_weights
from difformer.config import UNetConfig, from_mapping
from difformer.diffusion import NoiseSchedule

FORMAT = "difformer.backbone"
FORMAT_VERSION = 1
# Written elsewhere, and named here to tell it apart.
CLASSIFIER_FORMAT = "difformer.classifier"


@dataclass(frozen=True)
class StoredBackbone:
    """Everything a backbone file says.

    Attributes:
        name: what it is called: a preset's name, or the stem of the file.
        config: its architecture.
        schedule: its noise schedule.
        digest: SHA-256 of the weights; see `weights_digest`.
        provenance: where the weights came from.
    """

    name: str
    config: UNetConfig
    schedule: NoiseSchedule
    digest: str
    provenance: Mapping[str, str]


def write_backbone(
    path: Path, state: Mapping[str, Tensor], backbone: StoredBackbone, *, overwrite: bool = False
) -> None:
    """Writes a self-describing safetensors file, atomically.

    Args:
        path: the file; its folder must exist. A leading `~` is the home folder.
        state: the weights, with OpenAI's names.
        backbone: what the metadata says. Its digest must be that of `state`.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError, OSError: as `write_weights`.
    """
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "difformer_version": __version__,
        "name": backbone.name,
        "config": json.dumps(asdict(backbone.config)),
        "schedule": json.dumps(backbone.schedule.to_dict()),
        "weights_sha256": backbone.digest,
        "provenance": json.dumps(dict(backbone.provenance)),
    }
    write_weights(path, state, metadata, overwrite=overwrite)


def is_backbone_file(metadata: Mapping[str, str], source: str) -> bool:
    """Whether a safetensors file's metadata is that of one of our backbones.

    Raises:
        CheckpointError: it is another of our files.
    """
    kind = metadata.get("format", "")
    if kind == CLASSIFIER_FORMAT:
        raise CheckpointError(f"{source} is {kind}, not a backbone; classifiers are opened with load_classifier")
    return kind == FORMAT


def parse_metadata(metadata: Mapping[str, str], source: str) -> StoredBackbone:
    """Reads the metadata of one of our backbone files.

    Raises:
        CheckpointError: it is of a newer format, incomplete or malformed.
    """
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{source} has backbone format {version or 'unknown'}; this version of difformer reads {FORMAT_VERSION}. "
            "Update difformer, or convert the original weights again"
        )
    try:
        config: dict[str, Any] = json.loads(metadata["config"])
        provenance = json.loads(metadata["provenance"])
        if not isinstance(provenance, dict):
            raise ValueError(f"provenance {provenance!r}")
        return StoredBackbone(
            name=metadata["name"],
            config=from_mapping(UNetConfig, config),
            schedule=NoiseSchedule.from_dict(json.loads(metadata["schedule"])),
            digest=metadata["weights_sha256"],
            provenance=provenance,
        )
    except KeyError as error:
        raise CheckpointError(f"{source}: its metadata lacks {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{source}: its metadata is malformed: {error}") from error


def verify_digest(weights: Weights, expected: str) -> None:
    """Raises CheckpointError unless the weights are the ones the digest was taken of."""
    found = weights_digest(weights.state)
    if found != expected:
        raise CheckpointError(
            f"{weights.source} is corrupt: the SHA-256 of its weights is {found}, its metadata says {expected}"
        )
