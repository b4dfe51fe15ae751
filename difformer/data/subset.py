"""Which labelled images are used: few of each class, a percentage, a list, and splits held out."""

import json
import os
import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.data.images import IMAGE_SUFFIXES
from difformer.data.source import DataError, Source
from difformer.data.spec import DataConfig
from difformer.files import expand_user, read_json, sealed, sha256, write_atomically
from difformer.streams import Stream, generator, rounding_generator

_log = getLogger(__name__)

HOLDOUT, TEST = "holdout", "test"

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelSubset:
    """The labelled images of a split that are used, as it is saved with a run.

    Attributes:
        indices: (n,) int64 places in the full split, ascending.
        rule: what chose them, such as {"k_shot": 16}.
        seed: of the choice.
        digest: of the full split, `Source.digest`.
    """

    indices: Indices
    rule: Mapping[str, Any]
    seed: int
    digest: str

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all, with a digest of what is written."""
        record = {
            "rule": dict(self.rule),
            "seed": self.seed,
            "digest": self.digest,
            "indices": [int(i) for i in self.indices],
        }
        with write_atomically(Path(path), overwrite=True) as temporary:
            temporary.write_text(json.dumps(sealed(record)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "LabelSubset":
        """Reads what `save` wrote. Files of earlier versions have no digest, and are accepted as they are.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it is no subset, or is damaged.
        """
        try:
            record = read_json(Path(path), "restore it from a copy, or choose a subset again")
            if not isinstance(record, dict) or set(record) != {"rule", "seed", "digest", "indices"}:
                raise ValueError("it must have rule, seed, digest and indices")
            values = record["indices"]
            if not isinstance(values, list) or not all(type(value) is int for value in values):
                raise ValueError("indices must be a list of integers")
            indices = np.asarray(values, dtype=np.int64)
            if (indices < 0).any() or (np.diff(indices) <= 0).any():
                raise ValueError("indices must ascend from 0")
            return cls(indices, dict(record["rule"]), int(record["seed"]), str(record["digest"]))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path} is not a saved label subset, or is damaged: {error!r}") from error

    def check(self, source: Source, candidates: Indices) -> None:
        """Raises DataError when it was chosen from another split, or has images that are not among the candidates."""
        if self.digest != source.digest:
            raise DataError(
                f"the label subset was chosen from another version of {source.title}: "
                f"labels, order or file names differ"
            )
        strangers = np.setdiff1d(self.indices, candidates)
        if len(strangers):
            raise DataError(
                f"{len(strangers)} images of the label subset are not among those to choose from of {source.title}: "
                f"it was chosen with another holdout, or is given for the holdout"
            )


def choose_images(
    source: Source, config: DataConfig, split: str, saved: LabelSubset | None
) -> tuple[Indices, LabelSubset | None]:
    """The places that are used, and the label subset that chose them, if any.

    Where names repeat, images are drawn, with all of their objects.

    Args:
        source: the full split.
        config: says the holdout, the test split and the label subset.
        split: `train`, `holdout` or `test`, of the training split; others are used whole.
        saved: a label subset to use again.

    Raises:
        DataError: there is no holdout, or as `choose_subset` and `LabelSubset.check`.
        FileNotFoundError: as `choose_subset`.
    """
    photographs = _photographs(source)
    candidates = np.arange(len(source)) if photographs is None else np.unique(photographs)
    candidates = _candidates(source.labels, config, split, candidates)

    def all_of(places: Indices) -> Indices:
        return places if photographs is None else np.flatnonzero(np.isin(photographs, places))

    if saved is not None:
        saved.check(source, all_of(candidates))
        return saved.indices, saved
    if split == "train" and config.has_label_subset:
        chosen = choose_subset(source, config, candidates)
        chosen = replace(chosen, indices=all_of(chosen.indices))
        return chosen.indices, chosen
    return all_of(candidates), None


def _candidates(labels: Indices, config: DataConfig, split: str, candidates: Indices) -> Indices:
    """Those of the places that lie in a split, where it and others are parts of the training split."""
    if config.test_fraction and split in ("train", HOLDOUT, TEST):
        kept, held = split_holdout(labels[candidates], config.test_fraction, config.split_seed)
        candidates = candidates[held if split == TEST else kept]
    if split == HOLDOUT and not config.holdout:
        raise DataError("there is no holdout; set holdout to the fraction of the training split to set aside")
    if config.holdout and split in ("train", HOLDOUT):
        kept, held = split_holdout(labels[candidates], config.holdout, config.split_seed)
        candidates = candidates[held if split == HOLDOUT else kept]
    return candidates


def _photographs(source: Source) -> Indices | None:
    """(N,) the place of the first image of the same name; None where each has its own.

    An image of several objects, each with its own points, must not be both learned from and tested on.
    """
    if source.annotations is None or source.names is None:
        return None
    first: dict[str, int] = {}
    places = np.asarray([first.setdefault(name, index) for index, name in enumerate(source.names)])
    return places if len(first) < len(places) else None


def choose_subset(source: Source, config: DataConfig, candidates: Indices) -> LabelSubset:
    """The label subset that a configuration asks for.

    Args:
        source: the full split.
        config: with at most one of k_shot, percent and list_file.
        candidates: places in the split to choose from.

    Raises:
        DataError: a list names what is not there, or leaves nothing.
        FileNotFoundError: the list file is not there.
    """
    labels = source.labels[candidates]
    rule: dict[str, Any] = {}
    chosen = candidates
    if config.k_shot is not None:
        rule = {"k_shot": config.k_shot}
        chosen = candidates[few_shot(labels, config.k_shot, config.seed)]
    elif config.percent is not None:
        rule = {"percent": config.percent}
        chosen = candidates[percentage(labels, config.percent, config.seed)]
    elif config.list_file is not None:
        chosen = np.intersect1d(candidates, from_list_file(source, config.list_file))
        # Without its folder: a run's folder may be given to others.
        file = expand_user(config.list_file)
        rule = {"list_file": file.name, "list_sha256": sha256(file)}
    if config.holdout:
        rule |= {"holdout": config.holdout, "split_seed": config.split_seed}
    if config.test_fraction:
        rule |= {"test_fraction": config.test_fraction, "split_seed": config.split_seed}
    if not len(chosen):
        raise DataError(f"{source.title}: the label subset {rule} leaves no image")
    return LabelSubset(chosen, rule, config.seed, source.digest)


def few_shot(labels: Sequence[int] | Indices, k: int, seed: int) -> Indices:
    """`k` images of each class; those of a smaller k are among them. A class that has fewer gives all it has.

    Args:
        labels: (N,).
        k: at least 1.
        seed: of the choice, not negative.

    Returns:
        Ascending indices into the labels.
    """
    groups = _shuffled_by_class(labels, seed, Stream.SUBSET)
    short = {c: len(group) for c, group in groups.items() if len(group) < k}
    if short:
        _log.warning("%d classes have fewer than %d images; the smallest has %d", len(short), k, min(short.values()))
    return _sorted([group[:k] for group in groups.values()])


def percentage(labels: Sequence[int] | Indices, percent: float, seed: int, *, at_least: int = 1) -> Indices:
    """`percent` % of each class, rounded; those of a smaller percentage are among them.

    Args:
        labels: (N,).
        percent: in (0, 100].
        seed: of the choice, not negative.
        at_least: images of each class, or all that it has; at least 1.

    Returns:
        Ascending indices into the labels.
    """
    groups = _shuffled_by_class(labels, seed, Stream.SUBSET)
    return _sorted([group[: max(at_least, round(len(group) * percent / 100))] for group in groups.values()])


def evenly_spaced(length: int, most: int) -> list[int]:
    """Ascending places among `length`, from the first to the last: `most` of them, or all where there are fewer."""
    places: list[int] = np.linspace(0, length - 1, min(most, length)).round().astype(int).tolist()
    return places


def from_list_file(source: Source, list_file: str) -> Indices:
    """The images that a text file names, one a line and nothing else in it.

    A line is the path of an image in the split, or the last part of its path on the disk, with as many folders as are
    needed to tell it from others, or all of it. The folders that it names must be the image's; a bare file name, as in
    SimCLR's lists of 1 % and 10 % of ImageNet, must be there once. Where there is no such file, one that differs only
    in its suffix is taken, since the suffixes of lists and shards often differ.

    Raises:
        FileNotFoundError: the list is not there.
        DataError: it names what is not in the split or there several times, or the split's images have no names.
    """
    if source.names is None:
        raise DataError(f"{source.title}: the images have no file names, so a list file cannot choose among them")
    file = expand_user(list_file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no list file {file}")
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    left = {line.strip() for line in text.splitlines() if line.strip()}
    places: set[int] = set()
    for form in (str, _without_suffix):
        found = _named(source, left, form)
        # An image of several objects is there once for each, with its name.
        same = source.annotations is not None
        several = [line for line, those in found.items() if len({source.names[i] if same else i for i in those}) > 1]
        if several:
            raise DataError(f"{file}: {min(several)} is there several times in {source.title}; name it with its folder")
        places.update(place for those in found.values() for place in those)
        left = left.difference(found)
    if left:
        raise DataError(
            f"{file} names {len(left)} images that {source.title} does not have, such as {min(left)}; a line must be "
            f"the path of an image below the split's folder, or its file name"
        )
    return np.asarray(sorted(places), dtype=np.int64)


def _named(source: Source, lines: Collection[str], form: Callable[[str], str]) -> dict[str, list[int]]:
    """The places of the images that lines name, for the lines that name any.

    Args:
        source: the split, with names.
        lines: of a list file.
        form: of paths, in which lines and names are compared.
    """
    by_file: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        path = form(posixpath.normpath(line))
        by_file.setdefault(_file_name(path), []).append((line, path))
    folders = [""] if source.folder is None else [os.path.abspath(source.folder), os.path.realpath(source.folder)]
    exact: dict[str, list[int]] = {}
    ending: dict[str, list[int]] = {}
    for i, name in enumerate(map(form, source.names or ())):
        for line, path in by_file.get(_file_name(name), ()):
            if path == name:
                exact.setdefault(line, []).append(i)
            elif any(_ends_with(f"{folder}/{name}", path) for folder in folders):
                ending.setdefault(line, []).append(i)
    return ending | exact


def _ends_with(whole: str, path: str) -> bool:
    """Whether a path is another one's last part, or all of it where it begins at the root."""
    return whole == path if path.startswith("/") else whole.endswith(f"/{path}")


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]


def _without_suffix(name: str) -> str:
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def split_holdout(labels: Sequence[int] | Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """A seeded stratified split: a share of each class is held out.

    The part held out has round(N · fraction) images, divided over the classes in proportion (largest remainders first).
    No class is left without an image to learn from.

    Args:
        labels: (N,) classes, or any numbers to stratify by.
        fraction: in (0, 1).
        seed: not negative.

    Returns:
        Kept and held-out indices into the labels, both ascending.

    Raises:
        DataError: the fraction would hold out nothing.
    """
    groups = _shuffled_by_class(labels, seed, Stream.HOLDOUT)
    if not 0 < fraction < 1:
        raise DataError(f"the fraction to hold out must lie between 0 and 1, got {fraction}")
    shares = np.asarray([len(group) * fraction for group in groups.values()])
    counts = np.floor(shares).astype(int)
    room = np.asarray([len(group) for group in groups.values()]) - 1
    # Ties are broken at random; otherwise more would always be held out of the first classes.
    order = np.lexsort((rounding_generator(seed).random(len(shares)), counts - shares))
    for place in order:
        if counts.sum() < round(shares.sum()):
            counts[place] += 1
    counts = np.minimum(counts, room)
    if not counts.sum():
        raise DataError(
            f"holding out {fraction} of {len(labels)} images in {len(groups)} classes leaves none to hold out"
        )
    parts = list(zip(groups.values(), counts, strict=True))
    return _sorted([group[n:] for group, n in parts]), _sorted([group[:n] for group, n in parts])


def _shuffled_by_class(labels: Sequence[int] | Indices, seed: int, purpose: Stream) -> dict[int, Indices]:
    """The indices of each class in a random order that depends on nothing but the seed, the class and its size."""
    array = np.asarray(labels, dtype=np.int64)
    order = np.argsort(array, kind="stable")
    classes, starts = np.unique(array[order], return_index=True)
    groups = {}
    for name, group in zip(classes.tolist(), np.split(order, starts[1:]), strict=True):
        rng = generator(purpose, seed, name)
        groups[name] = group[np.argsort(rng.random(len(group)), kind="stable")]
    return groups


def _sorted(groups: Sequence[Indices]) -> Indices:
    return np.sort(np.concatenate(groups)).astype(np.int64)
