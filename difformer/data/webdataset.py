"""WebDataset shards: tar files whose members `KEY.jpg` and `KEY.cls` are one sample."""

import glob
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from logging import getLogger
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.config import as_integer
from difformer.data.images import IMAGE_SUFFIXES, ImageError, stable_id
from difformer.data.source import (
    DataError,
    Ends,
    Names,
    Source,
    find_root,
    numbered_classes,
    read_ends,
    unknown_split,
)
from difformer.data.spec import DataConfig

_log = getLogger(__name__)

_LARGEST = 1 << 63

_Members = dict[str, tuple[int, int]]  # offset and size by extension


@dataclass(frozen=True)
class _Entry:
    key: str
    suffix: str
    label: int
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class _Slices:
    """Images inside tar files: gives the bytes of an index."""

    paths: tuple[Path, ...]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __call__(self, index: int) -> bytes:
        return next(self.in_order([index]))

    def ends(self, index: int) -> Ends:
        """Raises OSError when the shard cannot be read."""
        with self.paths[self.shards[index]].open("rb") as file:
            return read_ends(file, int(self.offsets[index]), int(self.sizes[index]))

    def in_order(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Reads several, opening each shard once.

        Raises:
            ImageError: a shard is gone or cannot be read.
        """
        for shard, group in groupby(indices, key=lambda index: int(self.shards[index])):
            try:
                with self.paths[shard].open("rb") as file:
                    for index in group:
                        file.seek(int(self.offsets[index]))
                        yield file.read(int(self.sizes[index]))
            except OSError as error:
                raise ImageError(f"the shard {self.paths[shard]} cannot be read any more: {error}") from error


def read_webdataset(config: DataConfig, split: str) -> Source:
    """One split of WebDataset shards on the disk.

    The members' headers and labels of every shard are read, without the images: that gives the exact number of samples,
    so that processes and workers can share them without dropping or doubling one, and finds damage before the first
    step. An id is a hash of the sample's key, so it stays when samples move between shards; where shards repeat each
    other's keys, of the shard's name and the key.

    Shards do not say the classes. Without `class_names` they are as many as the split's labels need, so a split that
    lacks the last class would have fewer.

    Args:
        config: with root.
        split: a pattern of file names below root, with `*` and with braces, `train-{000..004}.tar`; a word without
            `.tar` stands for `*WORD*.tar`.

    Raises:
        DataError: no such shard, a damaged one, a sample without image or label, or a key that repeats in a shard.
        FileNotFoundError: no root.
    """
    paths = find_shards(config.root, split)
    bar = require("tqdm", "the progress bar").tqdm
    entries = [scan_shard(path) for path in bar(paths, "reading shards", unit="shard", delay=2, disable=None)]
    title = f"webdataset {split} in {config.root}"
    flat = [entry for shard in entries for entry in shard]
    shards = np.repeat(np.arange(len(paths)), [len(shard) for shard in entries])
    labels = np.asarray([entry.label for entry in flat], dtype=np.int64)
    classes = config.class_names or numbered_classes(title, labels.tolist())
    offsets, sizes = (np.asarray([getattr(e, name) for e in flat], dtype=np.int64) for name in ("offset", "size"))
    slices = _Slices(paths, shards, offsets, sizes)
    return Source(
        title,
        labels,
        classes,
        slices,
        names=Names(f"{entry.key}.{entry.suffix}" for entry in flat),
        ids=_ids(paths, entries),
        ends=slices.ends,
        shards=shards,
        in_order=slices.in_order,
    )


def find_shards(root: str | None, split: str) -> tuple[Path, ...]:
    """The shards of a split, by name.

    Raises:
        DataError: there is none, or the address is not one of this machine.
        FileNotFoundError: no root.
    """
    if any(re.match(r"\w\w+:", text) for text in (root or "", split)):
        raise DataError(
            f"shards are read from the disk: download or mount {root if ':' in (root or '') else split} first"
        )
    folder = find_root(root, "webdataset")
    pattern = split if ".tar" in split or ".tgz" in split else f"*{split}*.tar"
    found = {path for word in _expand_braces(pattern) for path in glob.glob(word, root_dir=folder)}
    if not found:
        known = sorted(path.name for path in folder.glob("*.tar"))
        raise unknown_split(f"webdataset {folder}", split, known[:5] + ["…"] * (len(known) > 5))
    missing = [w for w in _expand_braces(pattern) if not glob.has_magic(w) and w not in found]
    if missing:
        raise DataError(
            f"webdataset {folder} has no shard {missing[0]}; {len(missing)} of the shards named are missing"
        )
    return tuple(folder / name for name in sorted(found))


def scan_shard(path: Path) -> list[_Entry]:
    """The samples of a shard: key, label, and where the image lies.

    Raises:
        DataError: the shard is damaged, compressed or empty, or a sample is.
    """
    samples: dict[str, _Members] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                if not member.isfile() or not key or not dot:
                    continue
                members = samples.setdefault(f"{folder}/{key}" if folder else key, {})
                if suffix.lower() in members:
                    raise DataError(f"{path}: the member {member.name} is there twice; keys must differ in a shard")
                members[suffix.lower()] = (member.offset_data, member.size)
            _check_end(path, file, archive.offset)
            return [_entry(path, file, key, members) for key, members in samples.items()]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar file: {error}") from error


def _check_end(path: Path, file: BinaryIO, offset: int) -> None:
    """Looks at what follows the members. The reader takes a damaged header for the end, and two archives in one file
    for the first.
    """
    file.seek(offset)
    rest = file.read(1 << 20)
    if rest.strip(b"\0"):
        raise DataError(
            f"{path} is damaged at byte {offset}, or several archives in one file: it goes on after its end"
        )
    if not rest:
        _log.warning("%s has no end marker; samples are missing if it was cut off between two of them", path)


def _entry(path: Path, file: BinaryIO, key: str, members: _Members) -> _Entry:
    images = [suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise DataError(f"{path}: the sample {key} must have one image, but its members are {', '.join(members)}")
    label_suffix = next((suffix for suffix in ("cls", "json") if suffix in members), None)
    if label_suffix is None:
        raise DataError(f"{path}: the sample {key} has no label, {key}.cls or {key}.json; it has {', '.join(members)}")
    offset, size = members[label_suffix]
    file.seek(offset)
    text = file.read(size)
    try:
        label = int(text) if label_suffix == "cls" else as_integer("label", json.loads(text)["label"])
        if not -_LARGEST <= label < _LARGEST:
            raise ValueError("too large")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {key}.{label_suffix} must hold an integer label, got {text[:40]!r}") from error
    return _Entry(key, images[0], label, *members[images[0]])


def _ids(paths: tuple[Path, ...], entries: list[list[_Entry]]) -> NDArray[np.int64]:
    """A number for each sample that does not depend on where it lies, as far as its key is unique."""
    counts = Counter(entry.key for shard in entries for entry in shard)
    repeated = sum(count > 1 for count in counts.values())
    if repeated:
        _log.warning("%d sample keys are in several shards; ids depend on the names of the shards", repeated)
    keys = [
        f"{path.name}/{entry.key}" if repeated else entry.key
        for path, shard in zip(paths, entries, strict=True)
        for entry in shard
    ]
    return np.asarray([stable_id(key.encode("utf-8", "surrogateescape")) for key in keys], dtype=np.int64)


def _expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` as a-00.tar, a-01.tar and a-02.tar, and `{a,b}.tar` as a.tar and b.tar."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _alternatives(part) for i, part in enumerate(parts)]
    return ["".join(words) for words in product(*choices)]


def _alternatives(body: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers is None:
        return body.split(",")
    first, last = numbers.groups()
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
