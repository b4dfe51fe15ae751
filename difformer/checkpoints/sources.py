"""From what a user writes (a preset, a file, a hub repository) to weights and all that is known about them."""

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor

from difformer._optional import require
from difformer.checkpoints.architecture import see_architecture
from difformer.checkpoints.download import download as fetch
from difformer.checkpoints.presets import PRESETS, Preset, cache_folder, search_folders
from difformer.checkpoints.store import StoredBackbone, is_backbone_file, parse_metadata, verify_digest
from difformer.checkpoints.weights import (
    CheckpointError,
    Weights,
    read_metadata,
    read_weights,
    weights_digest,
)
from difformer.config import UNetConfig, from_mapping
from difformer.diffusion import NoiseSchedule
from difformer.files import sha256

_HUB = "hf://"
_HUB_FILE = "model.safetensors"

ConfigLike = UNetConfig | Mapping[str, Any]
ScheduleLike = NoiseSchedule | str


def locate(name_or_path: str | Path, *, folder: Path | None = None, download: bool = False) -> Path:
    """The file behind a preset's name, a path or a `hf://owner/name[/file][@revision]` address.

    Args:
        name_or_path: what the user wrote.
        folder: where presets lie, in place of the usual folders.
        download: whether it may be fetched when it is not on this machine.

    Raises:
        FileNotFoundError: it is not there, and may not be or cannot be fetched.
        ValueError: neither a preset, nor a path, nor a hub address.
        DownloadError: fetching failed.
    """
    name = str(name_or_path)
    if name.startswith(_HUB):
        return _locate_on_hub(name, download)
    if name in PRESETS:
        return _locate_preset(PRESETS[name], folder, download)
    path = Path(name_or_path)
    if path.exists():
        return path
    close = get_close_matches(name, PRESETS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(f"there is no file {name}, and no preset of that name ({', '.join(PRESETS)}).{hint}")


def describe(
    name_or_path: str | Path,
    *,
    folder: Path | None = None,
    preset: str | None = None,
    config: ConfigLike | None = None,
    schedule: ScheduleLike | None = None,
) -> tuple[UNetConfig, NoiseSchedule]:
    """Architecture and schedule of a preset (without its weights) or of a file (without keeping them).

    Raises:
        As `locate` and `read_backbone`.
    """
    if str(name_or_path) in PRESETS:
        published = PRESETS[str(name_or_path)]
        return _agree(published.config, published.schedule, config, schedule, published.name)
    path = locate(name_or_path, folder=folder)
    metadata = read_metadata(path)
    if is_backbone_file(metadata):
        stored = parse_metadata(metadata, str(path))
        return _agree(stored.config, stored.schedule, config, schedule, str(path))
    known = _recognise(path, preset, config)
    return _foreign_architecture(read_weights(path, verify=False), known, config, schedule)


def read_backbone(
    path: Path,
    *,
    preset: str | None = None,
    config: ConfigLike | None = None,
    schedule: ScheduleLike | None = None,
    verify: bool = True,
) -> tuple[Mapping[str, Tensor], StoredBackbone]:
    """Reads weights, and finds out everything that must be known to use them.

    Args:
        path: one of our safetensors files, or OpenAI's `.pt` (or any state dict with their names).
        preset: the published checkpoint it is, when the user knows.
        config: for foreign files: the architecture, or a mapping with what the weights cannot show.
        schedule: for foreign files: the noise schedule or its name.
        verify: check digests and checksums.

    Returns:
        Tensors by name, and what is known about them.

    Raises:
        CheckpointError: the file is damaged or not a U-Net's, or something about it must be given.
        ValueError: `preset`, `config` or `schedule` contradict the file, or are unknown.
    """
    weights = read_weights(path, verify=verify)
    known = _recognise(path, preset, config)
    if is_backbone_file(weights.metadata):
        stored = parse_metadata(weights.metadata, str(path))
        expected = known.config if known is not None and preset is not None else config
        _agree(stored.config, stored.schedule, expected, schedule, str(path))
        if verify:
            verify_digest(weights, stored.digest)
        return weights.state, stored
    provenance = {"file": path.name, "file_sha256": sha256(path)}
    if known is not None:
        if verify and known.sha256 not in (None, provenance["file_sha256"]):
            raise CheckpointError(
                f"{path} has SHA-256 {provenance['file_sha256']}, but {known.name} has {known.sha256}"
            )
        provenance |= {"preset": known.name, "url": known.url}
    found = _foreign_architecture(weights, known, config, schedule)
    name = path.stem if known is None else known.name
    return weights.state, StoredBackbone(name, *found, weights_digest(weights.state), provenance)


def as_schedule(schedule: ScheduleLike) -> NoiseSchedule:
    """A schedule given as such or by name."""
    return NoiseSchedule.from_name(schedule) if isinstance(schedule, str) else schedule


def _locate_preset(preset: Preset, folder: Path | None, download: bool) -> Path:
    found = preset.find(folder)
    if found is not None:
        return found
    if download:
        return fetch(preset.url, (folder or cache_folder()) / preset.file, digest=preset.sha256)
    places = ", ".join(map(str, search_folders(folder)))
    raise FileNotFoundError(
        f"the weights of {preset.name} are not on this machine; looked for {preset.name}.safetensors and "
        f"{preset.file} in {places}. Allow the download with download=True (--download), or fetch {preset.url} "
        "and put it into one of these folders"
    )


def _locate_on_hub(address: str, download: bool) -> Path:
    hub = require("huggingface_hub", f"reading {address}")
    place, _, revision = address[len(_HUB) :].partition("@")
    owner, name, file = (*place.split("/", 2), "", "")[:3]
    if not owner or not name:
        raise ValueError(f"{address!r} is not a hub address; write hf://owner/name, hf://owner/name/file or …@revision")
    try:
        found: str = hub.hf_hub_download(
            f"{owner}/{name}", file or _HUB_FILE, revision=revision or None, local_files_only=not download
        )
    except hub.errors.LocalEntryNotFoundError as error:
        allow = "the hub did not answer" if download else "allow the download with download=True (--download)"
        raise FileNotFoundError(f"{address} is not on this machine; {allow}") from error
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError) as error:
        raise FileNotFoundError(f"{address} cannot be had: {str(error).splitlines()[0]}") from error
    return Path(found)


def _recognise(path: Path, preset: str | None, config: ConfigLike | None) -> Preset | None:
    """The published checkpoint a foreign file is, told by the user or by OpenAI's file name."""
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
        return PRESETS[preset]
    if config is not None:
        return None
    return next((known for known in PRESETS.values() if known.file == path.name), None)


def _foreign_architecture(
    weights: Weights, known: Preset | None, config: ConfigLike | None, schedule: ScheduleLike | None
) -> tuple[UNetConfig, NoiseSchedule]:
    if known is not None:
        return _agree(known.config, known.schedule, config, schedule, known.name)
    if not isinstance(config, UNetConfig):
        config = see_architecture(weights.state, weights.source).complete(config or {})
    if schedule is None:
        raise CheckpointError(
            f"{weights.source}: weights cannot show the noise schedule; give schedule='linear' or 'cosine'"
        )
    return config, as_schedule(schedule)


def _agree(
    config: UNetConfig,
    schedule: NoiseSchedule,
    given_config: ConfigLike | None,
    given_schedule: ScheduleLike | None,
    source: str,
) -> tuple[UNetConfig, NoiseSchedule]:
    """What is known of a source; raises ValueError when the user says otherwise."""
    if given_config is not None:
        given = given_config if isinstance(given_config, UNetConfig) else None
        if given is None:
            given = from_mapping(UNetConfig, asdict(config) | dict(given_config))  # type: ignore[arg-type]
        if given != config:
            raise ValueError(f"{source} has {config}, which the configuration given contradicts; leave that out")
    if given_schedule is not None and as_schedule(given_schedule).to_dict() != schedule.to_dict():
        raise ValueError(f"{source} has the {schedule.name} schedule; leave out the one given, which contradicts it")
    return config, schedule
