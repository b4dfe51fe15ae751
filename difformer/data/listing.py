"""Which files and folders are data: one rule for every reader, and for the prediction of folders."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difformer.data.images import IMAGE_SUFFIXES
from difformer.data.source import DataError

# Folders that network drives (Synology), archives made on macOS and disks of Linux add.
_SYSTEM = ("@eaDir", "__MACOSX", "lost+found")


@dataclass(frozen=True)
class Found:
    """The files below a folder.

    Attributes:
        images: their paths relative to the folder, with forward slashes; folder by folder, both in the order of their
            names.
        left_out: how many other files there are, by their suffix; hidden ones are not counted.
    """

    images: list[str]
    left_out: Counter[str] = field(default_factory=Counter)


def is_hidden(name: str) -> bool:
    """Whether a name is that of a hidden or system entry; neither the entry nor anything in it is data. These are names
    that begin with a dot (as the `._x.jpg` of macOS and `.ipynb_checkpoints`), `@eaDir`, `__MACOSX` and `lost+found`.
    """
    return name.startswith(".") or name in _SYSTEM


def is_data(path: str) -> bool:
    """Whether no part of a path, with forward slashes and relative to the folder of the data, is hidden."""
    return not any(is_hidden(part) for part in path.split("/") if part not in (".", ".."))


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if leads_to(entry.is_dir) and not is_hidden(entry.name))


def leads_to(kind: Callable[[], bool]) -> bool:
    """Whether an entry is a folder or a file; a link that leads to itself is neither.

    Args:
        kind: `is_dir` or `is_file` of the entry.

    Raises:
        OSError: it is a link to a place that may not be read.
    """
    try:
        return kind()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def find_images(folder: Path) -> Found:
    """The images below a folder: files with an image's suffix. Links are followed; one that leads nowhere counts as
    what its name says, so that it is reported when it is read.

    Raises:
        DataError: a link leads back to a folder above it, so that its images would be there many times.
        OSError: a folder cannot be read.
    """
    places = sorted(_walk(folder, "", (os.path.realpath(folder),)))
    left_out: Counter[str] = Counter()
    for *_, others in places:
        left_out += others
    return Found([image for _, images, _ in places for image in images], left_out)


def in_words(left_out: Mapping[str, int]) -> str:
    """Files that are left out, by suffix: `3 of .txt, 1 without a suffix`."""
    return ", ".join(
        f"{count} {f'of {suffix}' if suffix else 'without a suffix'}" for suffix, count in sorted(left_out.items())
    )


def _walk(folder: Path, inside: str, above: tuple[str, ...]) -> Iterator[tuple[str, list[str], Counter[str]]]:
    """Each folder's path below the first, its images in order, and its other files by suffix.

    Args:
        folder: the first.
        inside: the path of this one below it; the first itself is "".
        above: real paths from the first to this one.
    """
    images, left_out = [], Counter[str]()
    for entry in os.scandir(folder / inside):
        path = f"{inside}/{entry.name}" if inside else entry.name
        if is_hidden(entry.name):
            continue
        if leads_to(entry.is_dir):
            place = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
            if place in above:
                raise DataError(f"{folder / path} is a link to a folder above it; remove it")
            yield from _walk(folder, path, (*above, place))
        elif is_image_name(entry.name) and (leads_to(entry.is_file) or not os.path.exists(entry.path)):
            images.append(path)
        else:
            left_out[os.path.splitext(entry.name)[1].lower()] += 1
    yield inside, sorted(images), left_out
