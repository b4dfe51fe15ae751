"""Values that follow from the backbone where a recipe leaves them out, and recipes made for another backbone."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

from difformer.backbones import ADM, outline_backbone
from difformer.checkpoints import describe
from difformer.config import Size, as_size, shown, sides
from difformer.config.reading import plain, value_at
from difformer.data import canonical_name
from difformer.engine.config.recipe import ExtractorConfig
from difformer.models.plan import tap_specs
from difformer.taps import LITERATURE_ENCODER_BLOCKS, TapSpec, corresponding_tap, resolve_tap, tap_names

_log = getLogger(__name__)

_LITERATURE = tap_names(LITERATURE_ENCODER_BLOCKS)
_PROBED = "out04"
# (pixels, timestep of 1000) that suit each other: from a sweep on CIFAR-10, and from the literature. Between them the
# timestep rises with each doubling, since larger images show more through the same noise.
_SMALL, _LARGE = (32, 50), (256, 150)
_TAPS = ("taps", "feedback_taps", "first_pass_taps")
# Keys that describe one data set, and are wrong for another.
_OF_DATA_SET = ("class_names", "splits", "configuration", "image_column", "label_column")


class _Network(NamedTuple):
    """What is known of a backbone before it is opened; `image_size` is None where nothing says so."""

    taps: Mapping[str, TapSpec]
    num_timesteps: int
    image_size: Size | None


def fitting(
    config: ExtractorConfig, names: Iterable[str], *, num_timesteps: int, image_size: Size | None
) -> ExtractorConfig:
    """The same with taps by name, and with a tap and a timestep that suit the network where there are none.

    Args:
        config: which features are read.
        names: of the network's taps, in its order.
        num_timesteps: of its schedule.
        image_size: of the images it was trained on, in pixels; None where it is not known.

    Raises:
        ValueError: a tap that the network does not have.
    """
    known = list(names)
    read, fed_back, first = (
        tuple(_named(f"extractor.{key}", tap, known) for tap in getattr(config, key)) for key in _TAPS
    )
    (small, least), (large, most) = _SMALL, _LARGE
    side = math.sqrt(math.prod(sides(image_size or large)))
    doublings = math.log2(min(large, max(small, side)) / small) / math.log2(large / small)
    suitable = int(round(least + (most - least) * doublings, -1) * num_timesteps / 1000)
    return replace(
        config,
        taps=read or (corresponding_tap(_PROBED, _LITERATURE, known),),
        timesteps=config.timesteps or (suitable,),
        feedback_taps=fed_back,
        first_pass_taps=first,
    )


def with_named_taps(values: Mapping[str, Any], *, family: str | None = None) -> dict[str, Any]:
    """A training recipe's values with its extractor `fitting` its backbone, where that is on this machine.

    Recipes are then compared by what they read, not by how it is written: for ADM-256, 24, `out04` and no tap at all
    are the same.

    Args:
        values: the recipe's, which may come from a folder.
        family: of the backbone that the user named. Values with another family stay as they are: its code would run.
    """
    backbone, read = values.get("backbone", {}), values.get("extractor")
    # A folder may hold anything; wrong values are then reported as different.
    if not isinstance(backbone, Mapping) or not isinstance(read, Mapping):
        return dict(values)
    found = _described(backbone) if backbone.get("family") == family else None
    if found is None:
        return dict(values)
    extractor = fitting(
        ExtractorConfig(**read),
        found.taps,
        num_timesteps=found.num_timesteps,
        image_size=found.image_size,
    )
    return {**values, "extractor": plain(extractor)}


def fit_to_backbone(
    values: Mapping[str, Any], options: Collection[str], files: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A configuration's values, as files and options give them, for the backbone and the data set that they name.

    Image size, taps and timesteps follow from the backbone where nothing gives them. A file's classes and splits are
    left out when another data set replaces the file's, its family when another backbone replaces the file's, and the
    arguments of its head or task when another one replaces it.

    Args:
        values: of the configuration.
        options: names of those that were given on the command line.
        files: values of the files; later files override earlier ones.

    Raises:
        ValueError: a file names taps of the backbone it was made for, and another backbone is given, whose blocks are
            in other places; the message says which correspond.
    """
    fitted = dict(values)
    # A classifier's classes are its own, whatever it is measured on.
    if isinstance(fitted.get("data"), Mapping) and "classifier" not in fitted:
        fitted["data"] = _own_data(fitted["data"], options, files)
    # A classifier's backbone keeps its family too, wherever its weights are.
    if isinstance(fitted.get("backbone"), Mapping) and "classifier" not in fitted:
        fitted["backbone"] = _own_backbone(fitted["backbone"], options, files)
    for key in ("head", "task"):
        if isinstance(fitted.get(key), Mapping):
            fitted[key] = _own_arguments(key, fitted[key], options, files)
    backbone = fitted.get("backbone")
    found = _described(backbone) if isinstance(backbone, Mapping) else None
    if found is None or not isinstance(backbone, Mapping):
        return fitted
    taps, num_timesteps, image_size = found
    _check_taps(backbone, found, options, files)
    extractor = fitted.get("extractor")
    if isinstance(extractor, Mapping) and "taps" in extractor:
        suited = fitting(ExtractorConfig(), taps, num_timesteps=num_timesteps, image_size=image_size)
        _warn_of_numbers(extractor, list(taps))
        left_out = {key: getattr(suited, key) for key in ("taps", "timesteps") if not extractor.get(key)}
        fitted["extractor"] = {**extractor, **left_out}
    data = fitted.get("data")
    if isinstance(data, Mapping) and "size" in data and image_size is not None:
        if not _is_given("data.size", options, files):
            fitted["data"] = {**data, "size": image_size}
        elif (size := as_size("data.size", data["size"])) != image_size:
            _log.warning(
                "data.size is %s, but %s was trained on images of %s pixels: its blocks see another scale, and each "
                "image takes %.3g times the work; leave data.size out for the backbone's own",
                shown(size), backbone["name"], shown(image_size), math.prod(sides(size)) / math.prod(sides(image_size)),
            )  # fmt: skip
    return fitted


def _named(option: str, tap: int | str, known: Sequence[str]) -> str:
    try:
        return resolve_tap(tap, known)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _warn_of_numbers(extractor: Mapping[str, Any], known: Sequence[str]) -> None:
    """Warns where a tap is a number that means another block in the literature's network."""
    for key, tap in ((name, tap) for name in _TAPS for tap in extractor.get(name) or ()):
        name = _named(f"extractor.{key}", tap, known)
        if str(tap) != name and len(known) != len(_LITERATURE) and int(tap) <= len(_LITERATURE):
            meant = resolve_tap(tap, _LITERATURE)
            _log.warning(
                "extractor.%s: block %s of this network is %s; in the literature, block %s is %s of ADM-256, which "
                "corresponds to %s here; give that if it is meant",
                key, tap, name, tap, meant, corresponding_tap(meant, _LITERATURE, known),
            )  # fmt: skip


def _described(backbone: Mapping[str, Any]) -> _Network | None:
    """The network that a backbone section names; None where it cannot be known yet. Opening it reports why."""
    folder, family = backbone.get("folder"), backbone.get("family")
    try:
        if family in (None, ADM):
            # Immediate, while an outline of a large network takes part of a second.
            config, schedule = describe(str(backbone["name"]), folder=Path(folder) if folder else None)
            return _Network(tap_specs(config), schedule.num_timesteps, config.image_size)
        outline = outline_backbone(str(backbone["name"]), folder=folder, family=family)
        return _Network(outline.taps, outline.schedule.num_timesteps, outline.image_size)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError):
        return None


def _own_data(
    data: Mapping[str, Any], options: Collection[str], files: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The data section without what files say about a data set that a later file or an option replaces."""
    kept = dict(data)
    for place, file in enumerate(files):
        below = value_at(file, "data") if isinstance(value_at(file, "data"), Mapping) else {}
        if "name" not in below or canonical_name(str(below["name"])) == canonical_name(str(data.get("name"))):
            continue
        for key in _OF_DATA_SET:
            if not below.get(key) or _is_given(f"data.{key}", options, files[place + 1 :]):
                continue
            if key == "splits":
                kept[key] = {name: value for name, value in kept[key].items() if f"data.splits.{name}" in options}
            else:
                kept[key] = None
    return kept


def _own_backbone(
    backbone: Mapping[str, Any], options: Collection[str], files: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The backbone section without the family of a backbone that a later file or an option replaces."""
    kept = dict(backbone)
    for place, file in enumerate(files):
        name, family = value_at(file, "backbone.name"), value_at(file, "backbone.family")
        if None in (name, family) or name == backbone.get("name"):
            continue
        if not _is_given("backbone.family", options, files[place + 1 :]):
            kept["family"] = None
            _log.warning(
                "backbone.family %s belongs to %s, so it is left out for %s; give it as an option if it is the same",
                family, name, backbone.get("name"),
            )  # fmt: skip
    return kept


def _own_arguments(
    key: str, section: Mapping[str, Any], options: Collection[str], files: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The section of a head or a task without the arguments of one that a later file or an option replaces.

    Arguments that a file gives without a name belong to whatever is named.
    """
    name, owner = None, None
    left: Mapping[str, Any] = {}
    for file in [*files, {key: {"name": section["name"]}}]:
        named, arguments = value_at(file, f"{key}.name") or name, value_at(file, f"{key}.arguments")
        if arguments is not None:
            left, owner = arguments, named
        name = named
    replaced = {key, f"{key}.arguments"}.intersection(options)
    kept = {option[len(f"{key}.arguments.") :].partition(".")[0] for option in options if option.startswith(f"{key}.")}
    dropped = [] if replaced or owner in (None, name) else [one for one in left if one not in kept]
    if not dropped:
        return section
    _log.warning(
        "%s.arguments %s of the recipe are those of %s, so they are left out for %s; give them as options if they are "
        "meant", key, ", ".join(dropped), owner, name,
    )  # fmt: skip
    return {**section, "arguments": {one: value for one, value in section["arguments"].items() if one not in dropped}}


def _check_taps(
    backbone: Mapping[str, Any], network: _Network, options: Collection[str], files: Sequence[Mapping[str, Any]]
) -> None:
    """Raises ValueError where a file's taps are those of another backbone, with other blocks in their places."""
    name = str(backbone["name"])
    made_for: Any = None
    wrong: dict[str, list[str]] = {}
    for file in files:
        made_for = value_at(file, "backbone.name") or made_for
        for key in ("taps", *(f"extractor.{key}" for key in _TAPS)):
            taps = value_at(file, key)
            if not isinstance(taps, list | tuple) or _is_given(key, options, []):
                continue
            wrong[key] = []
            if made_for in (None, name):
                continue
            other = _described({**(value_at(file, "backbone") or {}), "name": str(made_for)})
            if other is not None and _places(other) != _places(network):
                wrong[key] = list(dict.fromkeys(corresponding_tap(tap, other.taps, network.taps) for tap in taps))
    listed = " ".join(f"--{key} {' '.join(taps)}" for key, taps in wrong.items() if taps)
    if listed:
        raise ValueError(
            f"the recipe names blocks of {made_for}, and {name} has others in their places. At the same depth are "
            f"{listed}; give these options, or others: `difformer info {name}` lists the blocks"
        )


def _places(network: _Network) -> list[float]:
    """Where the blocks are: sides of their maps, as fractions of the image's."""
    height = 1 if network.image_size is None else sides(network.image_size)[0]
    return [spec.height / height for spec in network.taps.values()]


def _is_given(key: str, options: Collection[str], files: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an option or a file gives a key, alone or with its whole section."""
    return key in options or key.partition(".")[0] in options or any(value_at(file, key) is not None for file in files)
