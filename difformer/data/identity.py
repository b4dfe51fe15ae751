"""Which images a data set has: a digest of their content, which is read once and then known by the file's state."""

import contextlib
import hashlib
import os
import time
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from difformer.data.checking import each
from difformer.data.images import Content, ImageError
from difformer.data.source import Source, add_numbers
from difformer.files import cache_folder, write_atomically

_log = getLogger(__name__)

_BLOCK = 1024
# From this many bytes of images on, the digests are kept.
_WORTH_BYTES = 1 << 26
# Nanoseconds that must have passed since a file's last change: a file system may give two quick changes the same time.
_SETTLED = 2_000_000_000

Stamps = NDArray[np.int64]


def samples_digest(source: Source, indices: NDArray[np.int64]) -> str:
    """Hexadecimal SHA-256 of samples in their order: of the split's digest, and of their ids, labels and images.

    An image, and the file of its mask, count by their content as it is stored: a copy elsewhere, or one with another
    time, is the same image, and an edit of any byte makes another. An image is read for this once on a machine. Its
    digest is then kept in the cache folder with what the disk says about its file: size, inode, time of modification
    and of change (the latter is set by the system at every change, even where the former is set back; Windows does not
    have it). While these stay the same, the digest is used; when one of them changes, the image is read again.

    So the first call reads all images, which takes as long as reading them in an epoch does (and 0.25 ms of processor
    time for 110 KB). Later calls ask the disk about each file or shard: 10 µs an image, and so about ten seconds for
    ImageNet's 1.2 million on a local disk. Reading both ends of each takes eight times as long.

    Args:
        source: the full split.
        indices: places in it.

    Raises:
        ImageError: an image cannot be read.
    """
    digest = _start(source, indices)
    digest.update(_Known(source).contents(indices).tobytes())
    return digest.hexdigest()


def former_digest(source: Source, indices: NDArray[np.int64]) -> str:
    """The `samples_digest` of earlier versions, to recognise what they wrote: it reads only the size and both ends of
    encoded images.

    Raises:
        ImageError: an image cannot be read.
    """
    if source.ends is None or source.annotations is not None:
        return samples_digest(source, indices)
    ends = source.ends

    def look(index: int) -> bytes:
        try:
            head, tail, size = ends(index)
        except OSError as error:
            raise _unreadable(source, index, error) from error
        return hashlib.sha256(b"%d %d %b%b" % (size, len(head), head, tail)).digest()

    digest = _start(source, indices)
    for image in each(look, indices.tolist(), "identifying images"):
        digest.update(image)
    return digest.hexdigest()


def same_images(
    source: Source, indices: NDArray[np.int64], other: Source, others: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(n,) whether each of some samples is also among those of another split: with the same file name, and the same
    content as it is stored.

    Images without names are compared where their files, labels and ids are the same. A copy with another name is not
    found. Only images with the same name and file size are read.

    Args:
        source: a full split.
        indices: places in it.
        other: another full split, or the same.
        others: places in that.

    Raises:
        ImageError: an image cannot be read.
    """
    mine, theirs = np.arange(len(indices)), np.arange(len(others))
    # From cheap to expensive: each is asked only of what the one before leaves.
    for look in (_labelled_names, _file_sizes, _contents):
        here, there = look(source, indices[mine]), look(other, others[theirs])
        common = set(here).intersection(there)
        mine = mine[[one in common for one in here]]
        theirs = theirs[[one in common for one in there]]
        if not common:
            break
    same = np.zeros(len(indices), dtype=bool)
    same[mine] = True
    return same


def _labelled_names(source: Source, indices: NDArray[np.int64]) -> list[Any]:
    if source.names is not None:
        return [source.names[index].rpartition("/")[2] for index in indices]
    files = source.files or (lambda _: ())
    return [(files(index), int(source.labels[index]), int(source.ids[index])) for index in indices.tolist()]


def _file_sizes(source: Source, indices: NDArray[np.int64]) -> list[int]:
    sizes: list[int] = _stamps(source, indices)[:, 0].tolist()
    return sizes


def _contents(source: Source, indices: NDArray[np.int64]) -> list[bytes]:
    return [digest.tobytes() for digest in _Known(source).contents(indices)]


def last_change(source: Source, indices: NDArray[np.int64]) -> float:
    """When a file of some images was last changed, in seconds since 1970; infinity where that is not known. A new time
    of modification, a move and a copy are changes too.
    """
    times = _stamps(source, indices)[:, 1:3].max(1, initial=0)
    return float(times.max()) / 1e9 if len(times) and times.min() > 0 else float("inf")


class _Known:
    """What is known about the images of a split, from one process to the next."""

    def __init__(self, source: Source) -> None:
        self._source = source
        name = hashlib.sha256(f"{source.title}\n{source.digest}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._path = cache_folder() / "images" / f"{name}.npz"

    def contents(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, 32) SHA-256 of the images' content; images whose digest is not known are read."""
        stamps = _stamps(self._source, indices)
        found, unknown = self._look_up(indices, stamps)
        # A file of several images counts once.
        if np.unique(stamps[unknown], axis=0)[:, 0].sum() < _WORTH_BYTES:
            self._read(indices, found, unknown)
            return found
        # Processes that start together read once: the others wait, and find what the first has read.
        with contextlib.ExitStack() as stack:
            # There may be no folder to write to, or no locks.
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(f"{self._path}.lock"))
            found, unknown = self._look_up(indices, stamps)
            began = time.time_ns()
            try:
                self._read(indices, found, unknown)
            finally:
                # After an interruption, the digests of some images are still zeros.
                settled = (stamps[:, 1:3].max(1, initial=0) < began - _SETTLED) & found.any(1) & (stamps[:, 0] >= 0)
                self._keep(indices[settled], stamps[settled], found[settled])
        return found

    def _look_up(self, indices: NDArray[np.int64], stamps: Stamps) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """(n, 32) digests, and the places among them where none is known."""
        known, digests = self._load()
        same = (known[indices] == stamps).all(1) & (stamps[:, 0] >= 0)
        return digests[indices] * same[:, None], np.flatnonzero(~same)

    def _read(self, indices: NDArray[np.int64], found: NDArray[np.uint8], unknown: NDArray[np.int64]) -> None:
        """Fills in the digests that are not known."""
        digests = each(self._digest, indices[unknown].tolist(), "identifying images")
        for place, digest in zip(unknown, digests, strict=True):
            found[place] = np.frombuffer(digest, dtype=np.uint8)

    def _digest(self, index: int) -> bytes:
        try:
            digest = hashlib.sha256(_content_bytes(self._source.content(index)))
            for path in () if self._source.annotations is None else self._source.annotations.files(index):
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
            return digest.digest()
        except OSError as error:
            raise _unreadable(self._source, index, error) from error

    def _load(self) -> tuple[Stamps, NDArray[np.uint8]]:
        """(N, 4) stamps and (N, 32) digests of all images of the split; the first stamp is -1 where none is known."""
        count = len(self._source)
        # A damaged file is ignored: the images are read again.
        with contextlib.suppress(Exception), np.load(self._path, allow_pickle=False) as file:
            stamps, digests = file["stamps"], file["digests"]
            shapes = (stamps.shape, digests.shape, stamps.dtype, digests.dtype)
            if shapes == ((count, 4), (count, 32), np.int64, np.uint8):
                return stamps, digests
        return np.full((count, 4), -1), np.zeros((count, 32), dtype=np.uint8)

    def _keep(self, indices: NDArray[np.int64], stamps: Stamps, found: NDArray[np.uint8]) -> None:
        known, digests = self._load()
        known[indices], digests[indices] = stamps, found
        try:
            with write_atomically(self._path, overwrite=True) as temporary, temporary.open("wb") as file:
                np.savez(file, stamps=known, digests=digests)
        except OSError as error:
            _log.warning("the digests of images cannot be kept, so the images will be read again: %s", error)


def _start(source: Source, indices: NDArray[np.int64]) -> "hashlib._Hash":
    digest = hashlib.sha256(source.digest.encode())
    add_numbers(digest, source.ids[indices])
    add_numbers(digest, source.labels[indices])
    return digest


def _stamps(source: Source, indices: NDArray[np.int64]) -> Stamps:
    """(n, 4) size, times of modification and of change in nanoseconds, and inode of the file that each image lies in;
    the size is -1 where there is no file or it cannot be read. For several files, sums and the latest times.
    """
    files, annotations = source.files, source.annotations
    if files is None:
        return np.full((len(indices), 4), -1)

    def look(places: NDArray[np.int64]) -> Stamps:
        paths = [files(place) + (() if annotations is None else annotations.files(place)) for place in places.tolist()]
        stamps = {names: _stamp(names) for names in set(paths)}
        return np.asarray([stamps[names] for names in paths], dtype=np.int64)

    blocks = [indices[i : i + _BLOCK] for i in range(0, len(indices), _BLOCK)]
    return np.concatenate([np.empty((0, 4), dtype=np.int64), *each(look, blocks, "looking for images", unit="block")])


def _stamp(paths: tuple[str, ...]) -> tuple[int, int, int, int]:
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        found = []
    if not found:
        return -1, 0, 0, 0
    inode = sum(file.st_ino for file in found) & (1 << 63) - 1
    times = max(file.st_mtime_ns for file in found), max(file.st_ctime_ns for file in found)
    return sum(file.st_size for file in found), *times, inode


def _content_bytes(content: Content) -> bytes:
    if isinstance(content, np.ndarray):
        return str(content.shape).encode() + content.tobytes()
    return content if isinstance(content, bytes) else content.read_bytes()


def _unreadable(source: Source, index: int, error: OSError) -> ImageError:
    return ImageError(f"{source.title}: {source.describe(index)} cannot be read: {error}")
