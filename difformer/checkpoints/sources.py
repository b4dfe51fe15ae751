"""From what a user writes (a preset, a file, a hub repository) to weights and all that is known about them."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from difformer.checkpoints.architecture import check_decoder, differences, see_architecture
from difformer.checkpoints.download import download as fetch
from difformer.checkpoints.hub import HUB, hub_version, locate_on_hub
from difformer.checkpoints.presets import PRESETS, Preset, search_folders, weight_shapes
from difformer.checkpoints.shipped import SUFFIX, missing_hint, shipped, verify_shipped
from difformer.checkpoints.store import StoredBackbone, is_backbone_file, parse_metadata, verify_digest
from difformer.checkpoints.weights import (
    CheckpointError,
    UnderspecifiedError,
    Weights,
    check_fits,
    read_weights,
    unwrapped,
    weights_digest,
)
from difformer.config import UNetConfig, from_mapping
from difformer.diffusion import NoiseSchedule
from difformer.files import cache_folder, expand_user, sha256

_IMAGE_CHANNELS = 3
ConfigLike = UNetConfig | Mapping[str, Any]
ScheduleLike = NoiseSchedule | str


def locate(name_or_path: str | Path, *, folder: Path | None = None, download: bool = False) -> Path:
    """The file behind a preset's name, a path, a `hf://owner/name[/file][@revision]` address or another name.

    Args:
        name_or_path: what the user wrote. A leading `~` is the home folder. A name that is neither preset nor file is
            that of a backbone or classifier kept as `name.safetensors` in one of the usual folders, such as the
            weights that ship: `adm_elpv`, `adm_elpv/difformer`. A folder of the same name does not hide it.
        folder: where named weights lie, in place of the usual folders (see `search_folders`).
        download: whether it may be fetched when it is not on this machine.

    Raises:
        FileNotFoundError: it is not there, and may not be or cannot be fetched.
        ValueError: neither a preset, nor a path, nor a hub address.
        DownloadError: fetching failed.
    """
    name = str(name_or_path)
    if name.startswith(HUB):
        return locate_on_hub(name, download=download)
    if name in PRESETS:
        return _locate_preset(PRESETS[name], folder, download)
    path = expand_user(name_or_path)
    if path.exists() and not path.is_dir():
        return path
    for place in search_folders(folder) if _is_name(name) else ():
        if (place / f"{name}{SUFFIX}").is_file():
            return place / f"{name}{SUFFIX}"
    if path.exists():
        return path
    ships = shipped()
    known = f"no preset of that name ({', '.join(PRESETS)})"
    if ships:
        known += f" and none of the weights that ship ({', '.join(ships)})"
    hint = missing_hint(name) if _is_name(name) and not PurePath(name).suffix else ""
    close = get_close_matches(name, [*PRESETS, *ships], n=1)
    if close and name not in ships:
        hint = f" Did you mean {close[0]!r}?{hint}"
    raise FileNotFoundError(f"there is no file {name}, and {known}.{hint}")


def describe(
    name_or_path: str | Path,
    *,
    folder: Path | None = None,
    download: bool = False,
    preset: str | None = None,
    config: ConfigLike | None = None,
    schedule: ScheduleLike | None = None,
    entry: str | None = None,
) -> tuple[UNetConfig, NoiseSchedule]:
    """Architecture and schedule of a preset (without its weights) or of a file (without reading its values).

    Args and Raises:
        As `open_weights`.
    """
    named = resolve_preset(name_or_path, preset)
    if str(name_or_path) in PRESETS:
        published = PRESETS[str(name_or_path)]
        return _agree(published.config, published.schedule, config, schedule, published.name)
    path = locate(name_or_path, folder=folder, download=download)
    weights = read_weights(path, entry=entry, verify=False, mapped=True)
    if is_backbone_file(weights.metadata, str(path)):
        stored = _parse(weights, named, config, schedule)
        return stored.config, stored.schedule
    return _foreign_architecture(_unwrapped(weights), named or _recognise(path, config), config, schedule)


def open_weights(
    name_or_path: str | Path,
    *,
    preset: str | None = None,
    config: ConfigLike | None = None,
    schedule: ScheduleLike | None = None,
    entry: str | None = None,
    folder: Path | None = None,
    download: bool = False,
    verify: bool = True,
) -> tuple[Mapping[str, Tensor], StoredBackbone]:
    """Finds and reads the weights behind what a user writes; `locate` and `read_backbone` in one.

    Args:
        name_or_path, folder, download: as for `locate`.
        preset, config, schedule, entry, verify: as for `read_backbone`.

    Raises:
        As `locate` and `read_backbone`.
    """
    known = resolve_preset(name_or_path, preset)
    path = locate(name_or_path, folder=folder, download=download)
    preset = known.name if known else None
    state, stored = read_backbone(path, preset=preset, config=config, schedule=schedule, entry=entry, verify=verify)
    if str(name_or_path).startswith(HUB):
        stored = replace(stored, provenance={**stored.provenance, "hub": hub_version(str(name_or_path), path)})
    return state, stored


def read_backbone(
    path: Path,
    *,
    preset: str | None = None,
    config: ConfigLike | None = None,
    schedule: ScheduleLike | None = None,
    entry: str | None = None,
    verify: bool = True,
) -> tuple[Mapping[str, Tensor], StoredBackbone]:
    """Reads weights, and everything that must be known to use them.

    Args:
        path: one of our safetensors files, or OpenAI's `.pt` (or any state dict with their names).
        preset: the published checkpoint it is, when the user knows.
        config: for foreign files: the architecture, or a mapping with what the weights cannot show.
        schedule: for foreign files: the noise schedule, whose number of steps weights cannot show either. A name alone
            is enough where the schedule is known, and must then agree.
        entry: for a `.pt` with several state dicts: which of them.
        verify: check digests and checksums. A preset's digest is that of OpenAI's file, so only files with OpenAI's
            name must have it; others must have the preset's names and shapes. Files that ship must be those of the
            repository.

    Returns:
        Tensors by name, and what is known about them.

    Raises:
        CheckpointError: the file is damaged or not a U-Net's, or weights alone do not show enough about it.
        ValueError: `preset`, `config` or `schedule` contradict the file, or are unknown.
    """
    named = resolve_preset(path, preset)
    if verify:
        verify_shipped(path)
    weights = read_weights(path, entry=entry, verify=verify)
    if is_backbone_file(weights.metadata, str(path)):
        stored = _parse(weights, named, config, schedule, verify=verify)
        if verify:
            verify_digest(weights, stored.digest)
        return weights.state, stored
    weights = _unwrapped(weights)
    known = named or _recognise(path, config)
    provenance = {"file": path.name, "file_sha256": sha256(path)} | ({} if entry is None else {"entry": entry})
    if known is not None:
        found = provenance["file_sha256"]
        if verify and path.name == known.file and known.sha256 not in (None, found):
            raise CheckpointError(
                f"{path} has SHA-256 {found}, but {known.name} has {known.sha256}; it is damaged or another version. "
                "To use it anyway, give verify=False (--verify false)"
            )
        provenance |= {"preset": known.name, "url": known.url}
    architecture = _foreign_architecture(weights, known, config, schedule)
    name = path.stem if known is None else known.name
    return weights.state, StoredBackbone(name, *architecture, weights_digest(weights.state), provenance)


def resolve_preset(name_or_path: str | Path, preset: str | None) -> Preset | None:
    """The published checkpoint that a user names, as the source itself or in addition to it.

    Raises:
        ValueError: no such preset, or the source is another one.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    name = str(name_or_path)
    if preset is not None and name in PRESETS and name != preset:
        raise ValueError(f"{name} is a preset itself, and not {preset}; leave one of them out")
    chosen = name if name in PRESETS else preset
    return None if chosen is None else PRESETS[chosen]


def as_schedule(schedule: ScheduleLike) -> NoiseSchedule:
    """A schedule given as such or by name, which then has 1000 steps.

    Raises:
        ValueError: it is something else, or no known name.
    """
    if isinstance(schedule, str):
        return NoiseSchedule.from_name(schedule)
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(f"schedule must be 'linear', 'cosine' or a NoiseSchedule, got {schedule!r}")
    return schedule


def _is_name(name: str) -> bool:
    """Whether a text may be the name of weights: words with single slashes between them."""
    path = PurePath(name)
    return path.as_posix() == name and not path.is_absolute() and not {"..", "~"} & set(path.parts) and name != "."


def _locate_preset(preset: Preset, folder: Path | None, download: bool) -> Path:
    found = preset.find(folder)
    if found is not None:
        return found
    if download:
        return fetch(preset.url, expand_user(folder or cache_folder()) / preset.file, digest=preset.sha256)
    places = ", ".join(map(str, search_folders(folder)))
    raise FileNotFoundError(
        f"the weights of {preset.name} are not on this machine; looked for {preset.name}.safetensors and "
        f"{preset.file} in {places}. Allow the download with download=True (--download; in a recipe, "
        f"backbone.download: true), or fetch {preset.url} and put it into one of these folders"
    )


def _recognise(path: Path, config: ConfigLike | None) -> Preset | None:
    """The published checkpoint whose file name a foreign file has, unless the user says what it is."""
    if config is not None:
        return None
    return next((known for known in PRESETS.values() if known.file == path.name), None)


def _parse(
    weights: Weights,
    named: Preset | None,
    config: ConfigLike | None,
    schedule: ScheduleLike | None,
    *,
    verify: bool = True,
) -> StoredBackbone:
    """What one of our files says, which must fit its weights; raises ValueError when the user says otherwise."""
    source = weights.source
    stored = parse_metadata(weights.metadata, source, verify=verify)
    if named is not None:
        origin = stored.provenance.get("preset", named.name)
        if origin != named.name:
            raise ValueError(
                f"{source} was made of {origin}, which the preset {named.name} contradicts; leave that out"
            )
        _agree(stored.config, stored.schedule, named.config, named.schedule, source)
    _agree(stored.config, stored.schedule, config, schedule, source)
    _check_architecture(weights, stored.config)
    return stored


def _unwrapped(weights: Weights) -> Weights:
    return replace(weights, state=unwrapped(weights.state))


def _foreign_architecture(
    weights: Weights, known: Preset | None, config: ConfigLike | None, schedule: ScheduleLike | None
) -> tuple[UNetConfig, NoiseSchedule]:
    check_decoder(weights.state, weights.source)
    if known is not None:
        found = _agree(known.config, known.schedule, config, schedule, known.name)
        try:
            _check_architecture(weights, known.config)
        except CheckpointError as error:
            hint = (
                "it is read as that preset because of its name, or because you named the preset; give another "
                "network's config"
            )
            raise CheckpointError(f"{error}\n  expected: {known.name}; {hint}") from error
        return found
    if not isinstance(config, UNetConfig):
        config = see_architecture(weights.state, weights.source).complete(_as_mapping(config))
    _check_architecture(weights, config)
    if not isinstance(schedule, NoiseSchedule):
        name = "linear" if schedule is None else as_schedule(schedule).name
        missing = "the noise schedule and its number of steps" if schedule is None else "the schedule's number of steps"
        raise UnderspecifiedError(
            f"{weights.source}: weights cannot show {missing}; still to be given\n"
            f"  in Python: schedule=NoiseSchedule.{name}(1000), or cosine, with the steps it was trained with\n"
            f"  on the command line: --schedule {name} --num_timesteps 1000\n"
            "  they are --noise_schedule and --diffusion_steps of guided-diffusion, whose default is 1000; "
            "improved-diffusion's networks often have 4000"
        )
    return config, schedule


def _check_architecture(weights: Weights, config: UNetConfig) -> None:
    if config.in_channels != _IMAGE_CHANNELS:
        raise CheckpointError(
            f"{weights.source} takes {config.in_channels} input channels, and a backbone reads RGB images, which have "
            f"{_IMAGE_CHANNELS}. Networks with {2 * _IMAGE_CHANNELS}, such as OpenAI's upsamplers, read a second image "
            "beside the noisy one and cannot be used"
        )
    # Counted first, since a damaged configuration could name more blocks than any memory could hold.
    blocks = len(config.channel_mult) * (config.num_res_blocks + 1)
    if blocks > len(weights.state):
        raise CheckpointError(
            f"{weights.source} does not fit the architecture: {blocks} blocks in each half, "
            f"but {len(weights.state)} tensors in the file"
        )
    try:
        expected = weight_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"{weights.source} does not fit the architecture: {error}") from error
    check_fits(weights.state, expected, weights.source)


def _agree(
    config: UNetConfig,
    schedule: NoiseSchedule,
    given_config: ConfigLike | None,
    given_schedule: ScheduleLike | None,
    source: str,
) -> tuple[UNetConfig, NoiseSchedule]:
    """What is known about a source; raises ValueError when the user says otherwise."""
    if given_config is not None:
        given = given_config
        if not isinstance(given, UNetConfig):
            changed = dict(_as_mapping(given))
            if "num_heads" in changed and changed.get("num_head_channels") is None:
                changed["num_head_channels"] = None  # it would take precedence over what the user says
            given = from_mapping(UNetConfig, asdict(config) | changed)
        if names := differences(config, given):
            known = ", ".join(f"{name} {getattr(config, name)!r}" for name in names)
            told = ", ".join(f"{name} {getattr(given, name)!r}" for name in names)
            raise ValueError(f"{source} has {known}, which the configuration given contradicts with {told}")
    if given_schedule is not None:
        asked = as_schedule(given_schedule)
        # A name says nothing of the number of steps.
        by_name = isinstance(given_schedule, str) and asked.name == schedule.name
        if not by_name and asked.to_dict() != schedule.to_dict():
            raise ValueError(
                f"{source} has the {schedule.name} schedule of {schedule.num_timesteps} steps; leave out the one "
                "given, which contradicts it"
            )
    return config, schedule


def _as_mapping(config: Any) -> Mapping[str, Any]:
    if config is not None and not isinstance(config, Mapping):
        raise ValueError(f"config must be a UNetConfig, a preset's name or a mapping, got {config!r}")
    return config or {}
