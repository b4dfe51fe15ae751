"""Our own files: safetensors whose metadata says everything else, so that the file alone is enough.

| entry of the metadata | |
|---|---|
| `format`, `format_version` | what it is, and 2; 1 had no digest of the description |
| `weights_sha256` | SHA-256 of the weights, which identifies them in any file; see `weights_digest` |
| `content_sha256` | SHA-256 of all other entries, and so of weights and description together |
| others | the description |
"""

import hashlib
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
CLASSIFIER_FORMAT = "difformer.classifier"
FORMAT_VERSION = 2
_READ_VERSIONS = ("1", "2")
_CONTENT_DIGEST = "content_sha256"
# Entries that show a file of ours although its `format` was damaged.
_OWN_ENTRIES = frozenset({"format_version", "weights_sha256", _CONTENT_DIGEST})


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
    description = {
        "difformer_version": __version__,
        "name": backbone.name,
        "config": json.dumps(asdict(backbone.config)),
        "schedule": json.dumps(backbone.schedule.to_dict()),
        "provenance": json.dumps(dict(backbone.provenance)),
    }
    write_described(path, state, FORMAT, description, digest=backbone.digest, overwrite=overwrite)


def write_described(
    path: Path,
    state: Mapping[str, Tensor],
    kind: str,
    description: Mapping[str, str],
    *,
    digest: str,
    overwrite: bool = False,
) -> None:
    """Writes one of our own files, atomically, under a digest of everything in it.

    Args:
        path: the file; its folder must exist. A leading `~` is the home folder.
        state: the weights.
        kind: the format's name.
        description: the entries of this format.
        digest: of the weights; see `weights_digest`.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError, OSError: as `write_weights`.
    """
    metadata = {**description, "format": kind, "format_version": str(FORMAT_VERSION), "weights_sha256": digest}
    write_weights(path, state, metadata | {_CONTENT_DIGEST: content_digest(metadata)}, overwrite=overwrite)


def content_digest(metadata: Mapping[str, str]) -> str:
    """Hexadecimal SHA-256 over the metadata of one of our files, without this digest itself."""
    entries = sorted((name, text) for name, text in metadata.items() if name != _CONTENT_DIGEST)
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def check_description(metadata: Mapping[str, str], source: str, *, verify: bool = True) -> None:
    """Makes sure that the description in one of our files has a known format, and is the one that was written.

    Args:
        metadata: its metadata.
        source: the file, for messages.
        verify: check the digest. In files of format 1 the description has none.

    Raises:
        CheckpointError: a newer format, or the description was altered.
    """
    version = metadata.get("format_version", "unknown")
    if version not in _READ_VERSIONS:
        kind = metadata.get("format", "").removeprefix("difformer.")
        raise CheckpointError(
            f"{source} has {kind} format {version}; this version of difformer reads {' and '.join(_READ_VERSIONS)}. "
            "Update difformer, or write the file again with this version"
        )
    # A file of format 2 cannot pass for one of format 1 without its digest, nor by its version number alone.
    expected = None if version == "1" else content_digest(metadata)
    if verify and metadata.get(_CONTENT_DIGEST) != expected:
        raise CheckpointError(
            f"{source} is damaged or was altered: its description does not match its {_CONTENT_DIGEST}. Fetch or write "
            "it again; where verify=False can be given, the file is used as it is"
        )


def is_backbone_file(metadata: Mapping[str, str], source: str) -> bool:
    """Whether a safetensors file's metadata is that of one of our backbones.

    Raises:
        CheckpointError: it is another of our files, or one of ours that does not say which.
    """
    kind = metadata.get("format", "")
    if kind == CLASSIFIER_FORMAT:
        raise CheckpointError(f"{source} is {kind}, not a backbone; classifiers are opened with load_classifier")
    if kind != FORMAT and metadata.keys() & _OWN_ENTRIES:
        raise CheckpointError(f"{source} is damaged: its metadata is difformer's, but its format is {kind!r}")
    return kind == FORMAT


def parse_metadata(metadata: Mapping[str, str], source: str, *, verify: bool = True) -> StoredBackbone:
    """Reads the metadata of one of our backbone files.

    Raises:
        CheckpointError: it is of a newer format, altered (unless `verify` is false), incomplete or malformed.
    """
    check_description(metadata, source, verify=verify)
    try:
        config: Any = json.loads(metadata["config"])
        provenance = json.loads(metadata["provenance"])
        if not isinstance(provenance, dict):
            raise ValueError(f"provenance must be keys and values, got {type(provenance).__name__}")
        return StoredBackbone(
            name=metadata["name"],
            config=from_mapping(UNetConfig, config),
            schedule=NoiseSchedule.from_dict(json.loads(metadata["schedule"])),
            digest=metadata["weights_sha256"],
            provenance=provenance,
        )
    except KeyError as error:
        raise CheckpointError(f"{source}: its metadata lacks {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: its metadata is malformed: {error}") from error


def verify_digest(weights: Weights, expected: str) -> None:
    """Raises CheckpointError unless the weights have the digest expected."""
    found = weights_digest(weights.state)
    if found != expected:
        raise CheckpointError(
            f"{weights.source} is corrupt: the SHA-256 of its weights is {found}, its metadata says {expected}"
        )
