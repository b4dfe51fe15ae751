"""WebDataset shards: tar files whose members `KEY.jpg` and `KEY.cls` are one sample."""

import glob
import json
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, product
from logging import getLogger
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from difformer.config import as_integer
from difformer.data.images import IMAGE_SUFFIXES, ImageError
from difformer.data.listing import is_data, is_hidden, leads_to
from difformer.data.source import DataError, Ends, Names, Source, find_root, numbered_labels, read_ends, unknown_split
from difformer.data.spec import DataConfig
from difformer.streams import stable_id

_log = getLogger(__name__)

_LARGEST = 1 << 63
# Bytes of a label, which may be one of many properties of a sample in a JSON file.
_LARGEST_LABEL = 1 << 24
# More than the largest published sets have (LAION-2B: 231,349).
_MOST_SHARDS = 300_000
# What shards of the same split are called.
_SAME_SPLIT = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))

_Members = dict[str, tuple[int, int]]  # offset and size by extension


class _Incomplete(ValueError):
    """A sample lacks its image or its label."""


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

    def files(self, index: int) -> tuple[str, ...]:
        """The shard."""
        return (str(self.paths[self.shards[index]]),)

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

    The members' headers and labels of every shard are read, without the images. That gives the exact number of samples,
    so that processes and workers can share them without dropping or doubling one. It also finds damage before the first
    step. An id is a hash of the sample's key, so it stays when samples move between shards; where shards repeat each
    other's keys, it is a hash of the shard's name and the key.

    A label is the integer in `KEY.cls`, or that in `KEY.json` under "label" or the name that `label_column` gives.
    Shards do not name the classes. Without `class_names` there are as many as the split's labels need, so a split that
    lacks the last class would have fewer.

    Args:
        config: with root.
        split: a pattern of file names below root, with `*` and with braces, `train-{000..004}.tar`; `.tar` is added
            where it is not given. A word without any of these selects all shards in root that have it between
            separators: `val` selects `set-val-000.tar` and `val2017.tar`, but not `retrieval.tar`; also
            `validation-0.tar`, which means the same.

    Raises:
        DataError: no such shard, one that is damaged or whose name has the words of two splits, a sample without image
            or label (left out and counted in the log with `on_bad_image: skip`), or a key that repeats in a shard.
        FileNotFoundError: no root.
    """
    paths = find_shards(config.root, split, config.splits.values())
    scan = partial(scan_shard, label_key=config.label_column, skip=config.on_bad_image == "skip")
    entries = [scan(path) for path in tqdm(paths, "reading shards", unit="shard", delay=2, disable=None)]
    title = f"webdataset {split} in {config.root}"
    flat = [entry for shard in entries for entry in shard]
    shards = np.repeat(np.arange(len(paths)), [len(shard) for shard in entries])
    labels, classes = numbered_labels(title, [entry.label for entry in flat], config)
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
        files=slices.files,
        in_order=slices.in_order,
    )


def find_shards(root: str | None, split: str, others: Iterable[str] = ()) -> tuple[Path, ...]:
    """The shards of a split, by name.

    Args:
        root: the folder they lie in.
        split: as for `read_webdataset`.
        others: words and patterns of further splits. A name that has the words of two is refused; patterns may
            overlap, as those of train and trainval do, and the log names a shard that is in two.

    Raises:
        DataError: there is none, or one of a range is missing, a name has another split's word too, or the address is
            not one of this machine.
        FileNotFoundError: no root.
    """
    if any(re.match(r"\w\w+:", text) for text in (root or "", split)):
        raise DataError(
            f"shards are read from the disk: download or mount {root if ':' in (root or '') else split} first"
        )
    folder = find_root(root, "webdataset")
    there = sorted(entry.name for entry in os.scandir(folder) if leads_to(entry.is_file))
    known = [name for name in there if _is_shard(name) and not is_hidden(name)]
    if _is_pattern(split):
        by_word = _by_word(folder, split)
        missing = sorted(word for word, names in by_word.items() if not names)
        if missing and len(missing) < len(by_word):
            raise DataError(
                f"webdataset {folder} has no shard {missing[0]}; {len(missing)} of the shards named are missing"
            )
        found = sorted(set(chain(*by_word.values())))
    else:
        found = _named(folder, known, split, others)
    if not found:
        raise unknown_split(f"webdataset {folder}", split, known[:5] + ["…"] * (len(known) > 5))
    compressed = [name for name in found if not name.lower().endswith(".tar")]
    if compressed:
        raise DataError(
            f"webdataset {folder}: {compressed[0]} is compressed, so that its images cannot be reached one by one; "
            f"unpack it to a plain .tar file (gunzip)"
        )
    _report_shared(folder, split, found, others)
    return tuple(folder / name for name in sorted(found))


def _is_pattern(split: str) -> bool:
    return _names_tar(split) or glob.has_magic(split) or "{" in split


def _names_tar(pattern: str) -> bool:
    """Whether a pattern gives the ending of its files."""
    return ".tar" in pattern.lower() or ".tgz" in pattern.lower()


def _is_shard(name: str) -> bool:
    """Whether a file name is that of a tar file, compressed ones too."""
    return re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)$", name.lower()) is not None


def _named(folder: Path, known: Sequence[str], split: str, others: Iterable[str]) -> list[str]:
    """The shards, among those known, whose names have a split's name in them, between separators."""
    mine = next((names for names in _SAME_SPLIT if split in names), (split,))
    usual = [name for names in _SAME_SPLIT if len(mine) > 1 for name in names]
    strangers = [name for name in (*usual, *others) if name not in mine and not _is_pattern(name)]
    found = [name for name in known if any(_has_word(name, word) for word in mine)]
    for name in found:
        other = next((word for word in strangers if _has_word(name, word)), None)
        if other is not None:
            raise DataError(
                f"webdataset {folder}: the name of {name} has both {split} and {other} in it; say which shards are of "
                f"{split} with splits: {{{split}: PATTERN}}, such as *-{split}-*.tar"
            )
    return found


def _has_word(name: str, word: str) -> bool:
    """Whether a name has a word that is not a part of a longer word, or a number that is not a part of a longer one."""
    before, after = (r"[^\W_]" if end.isdigit() else r"[^\W\d_]" for end in (word[0], word[-1]))
    return re.search(rf"(?<!{before}){re.escape(word)}(?!{after})", name) is not None


def _report_shared(folder: Path, split: str, found: Iterable[str], others: Iterable[str]) -> None:
    """Names in the log a shard of a split that a pattern of another one names too."""
    mine = {os.path.normpath(name) for name in found}
    for other in others:
        names = chain(*_by_word(folder, other).values()) if other != split and _is_pattern(other) else ()
        shared = sorted(mine.intersection(map(os.path.normpath, names)))
        if shared:
            what = f"{len(shared)} shards of {split}, such as {shared[0]}, are in {other} too"
            _log.warning("webdataset %s: %s", folder, what)


def _by_word(folder: Path, pattern: str) -> dict[str, list[str]]:
    """The shards that a pattern names, by each word that its braces expand to."""
    found = {}
    for word in _expand_braces(pattern):
        word = word if _names_tar(word) else f"{word}.tar"
        names = glob.glob(word, root_dir=folder)
        # Hidden files are shards only where they are named without `*`.
        found[word] = [name for name in names if _is_shard(name) and (name == word or is_data(name))]
    return found


def scan_shard(path: Path, *, label_key: str | None = None, skip: bool = False) -> list[_Entry]:
    """The samples of a shard: key, label, and where the image lies.

    Args:
        path: of the shard.
        label_key: where the label stands in `KEY.json`; "label" in those samples that have no `KEY.cls` when None.
        skip: leave out samples that lack their image or label, and count them in the log.

    Raises:
        DataError: the shard is damaged, compressed or empty, or a sample is.
    """
    samples: dict[str, _Members] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                _add_member(path, samples, member)
            # The reader takes a damaged header for the end, and only the first of two archives in one file.
            file.seek(archive.offset)
            rest = file.read(1 << 20)
            if rest.strip(b"\0"):
                raise DataError(
                    f"{path} is damaged at byte {archive.offset}, or several archives in one file: there is data after "
                    "the end marker"
                )
            if not rest:
                _log.warning("%s has no end marker; samples are missing if it was cut off between two of them", path)
            return _entries(path, file, samples, label_key, skip)
    except DataError:
        raise
    # Damaged headers make the reader raise errors of several kinds.
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar file: {error}") from error


def _add_member(path: Path, samples: dict[str, _Members], member: tarfile.TarInfo) -> None:
    """Notes where a file of a sample lies: its key ends at the first dot of its name."""
    if member.size < 0 or member.issparse():
        raise DataError(f"{path}: the member {member.name} is {'damaged' if member.size < 0 else 'a sparse file'}")
    if member.isdir() or not is_data(member.name):
        return
    folder, _, name = member.name.rpartition("/")
    key, dot, suffix = name.partition(".")
    if not dot:
        return
    if not member.isfile():
        raise DataError(f"{path}: the member {member.name} is a link or a device; pack the files themselves")
    members = samples.setdefault(f"{folder}/{key}" if folder else key, {})
    if suffix.lower() in members:
        raise DataError(f"{path}: the member {member.name} is there twice; keys must differ in a shard")
    members[suffix.lower()] = (member.offset_data, member.size)


def _entries(
    path: Path, file: BinaryIO, samples: dict[str, _Members], label_key: str | None, skip: bool
) -> list[_Entry]:
    found, left_out = [], []
    for key, members in samples.items():
        try:
            found.append(_entry(path, file, key, members, label_key))
        except _Incomplete as error:
            if not skip:
                raise DataError(f"{error}; leave such samples out with on_bad_image: skip") from error
            left_out.append(str(error))
    if left_out:
        _log.warning("%s: left out %d samples without image or label, such as: %s", path, len(left_out), left_out[0])
    return found


def _entry(path: Path, file: BinaryIO, key: str, members: _Members, label_key: str | None) -> _Entry:
    images = [suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    there = ", ".join(members)
    # A user may not expect this rule for file names with several dots.
    rule = "; a key ends at the first dot of a file name" if any("." in suffix for suffix in members) else ""
    if len(images) > 1:
        raise DataError(f"{path}: the sample {key} must have one image, but its members are {there}{rule}")
    if not images:
        raise _Incomplete(f"{path}: the sample {key} must have one image, but its members are {there}{rule}")
    order = ("cls", "json") if label_key is None else ("json", "cls")
    kind = next((suffix for suffix in order if suffix in members), None)
    if kind is None:
        raise _Incomplete(f"{path}: the sample {key} has no label, {key}.cls or {key}.json; it has {there}{rule}")
    offset, size = members[kind]
    if size > _LARGEST_LABEL:
        raise DataError(f"{path}: {key}.{kind} must hold an integer label, but has {size} bytes")
    file.seek(offset)
    label = _label(f"{path}: {key}.{kind}", file.read(size), kind, label_key or "label")
    return _Entry(key, images[0], label, *members[images[0]])


def _label(where: str, text: bytes, kind: str, key: str) -> int:
    try:
        if kind == "cls":
            label = int(text)
        else:
            record = json.loads(text)
            if not isinstance(record, dict):
                raise ValueError("no mapping")
            expected = f"{where} must hold an integer label under {key!r}, but has"
            if key not in record:
                known = ", ".join(map(repr, list(record)[:10]))
                raise _Incomplete(f"{expected} {known}; set label_column to that of the label")
            if record[key] is None:
                raise _Incomplete(f"{expected} null")
            label = as_integer("label", record[key])
        if not -_LARGEST <= label < _LARGEST:
            raise ValueError("too large")
    except (DataError, _Incomplete):
        raise
    # RecursionError comes from JSON of many levels.
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} must hold an integer label, got {text[:40]!r}") from error
    return label


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
    """`a-{00..02}.tar` as a-00.tar, a-01.tar and a-02.tar, and `{a,b}.tar` as a.tar and b.tar.

    Raises:
        DataError: that would be more than a few hundred thousand.
    """
    choices = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        # The parts at odd places stood in braces.
        numbers = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", part) if i % 2 else None
        if numbers is None:
            choices.append(part.split(",") if i % 2 else [part])
            continue
        first, last = sorted(map(int, numbers.groups()))
        if last - first >= _MOST_SHARDS:
            raise _too_many(f"{{{part}}}")
        choices.append([str(number).zfill(len(numbers[1])) for number in range(first, last + 1)])
    if math.prod(map(len, choices)) > _MOST_SHARDS:
        raise _too_many(pattern)
    return ["".join(words) for words in product(*choices)]


def _too_many(pattern: str) -> DataError:
    return DataError(
        f"the pattern {pattern[:80]} names more than {_MOST_SHARDS} shards; name those that are there, with * or a "
        f"shorter range"
    )
