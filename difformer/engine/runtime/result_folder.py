"""Folders of results, which appear complete or not at all."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.data import ImageDataset
from difformer.files import check_writable, errors_name, expand_user, read_json, sha256


class ResultFolder:
    """Where an evaluation writes its files.

    Args:
        path: the folder. A leading `~` is the home folder.
        names: of all files that may be in it; `*` matches anything, as in `image-*.png`.
    """

    def __init__(self, path: str | Path, names: Collection[str]) -> None:
        self.path = expand_user(path)
        self.names = frozenset(names)

    def check(self, *, overwrite: bool) -> None:
        """Checks before long work that the results can be written.

        Raises:
            FileExistsError: it is a file, holds a file that is no result, or holds results and `overwrite` is false.
            OSError: nothing can be written beside it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; choose another --output")
        there = sorted(os.listdir(self.path)) if self.path.is_dir() else []
        strangers = [name for name in there if not any(fnmatchcase(name, known) for known in self.names)]
        if strangers:
            raise FileExistsError(f"{self.path} holds {strangers[0]}, which is no result; choose another --output")
        if there and not overwrite:
            raise FileExistsError(f"{self.path} holds results already; choose another --output, or --overwrite")
        check_writable(self.path.resolve().parent)

    @contextlib.contextmanager
    def write(self) -> Iterator[Path]:
        """Gives a temporary folder beside it, which replaces it at the end; after an error, nothing has changed.

        Raises:
            OSError: it cannot be written, such as on a full disk; the error names the folder.
        """
        parent = self.path.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        temporary, before = (
            parent / f".{self.path.name[:40]}.{secrets.token_hex(8)}.{ending}" for ending in ("tmp", "old")
        )
        temporary.mkdir()
        try:
            with errors_name(self.path, temporary):
                yield temporary
                for path in temporary.iterdir():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
                if self.path.is_dir() and any(self.path.iterdir()):
                    os.replace(self.path, before)
                os.replace(temporary, self.path)
        except BaseException:
            if before.exists() and not self.path.exists():
                os.replace(before, self.path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a file as JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def describe_split(
    split: str, images: ImageDataset, ids: NDArray[np.int64], skipped: tuple[int, ...]
) -> dict[str, Any]:
    """Which images were measured, in types for JSON.

    Args:
        split: its name.
        images: the whole split.
        ids: of the images that were measured.
        skipped: ids of images that are known to be unreadable.
    """
    left_out = {*skipped, *images.skipped.tolist(), *np.setdiff1d(images.ids, ids).tolist()}
    return {"split": split, "images": len(ids), "digest": images.digest, "skipped": sorted(left_out)}


def table_digests(folder: Path) -> dict[str, str]:
    """The digest of each table in a folder, for the file of numbers beside them."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*.csv"))}


def read_measurements(folder: Path, name: str, remedy: str) -> dict[str, Any]:
    """Reads an evaluation's file of numbers, and checks the tables beside it whose digests the file holds.

    Args:
        folder: of the evaluation.
        name: of the file.
        remedy: what to do about a damaged file, for the message.

    Raises:
        OSError: a file is missing, or cannot be read.
        ValueError: a file is damaged; the message names it.
    """
    report = read_json(folder / name, remedy)
    if not isinstance(report, dict):
        raise ValueError(f"{folder / name} is damaged: it holds no results; {remedy}")
    for table, digest in report.get("tables", {}).items():
        if sha256(folder / table) != digest:
            raise ValueError(f"{folder / table} is damaged: it does not match its digest in {name}; {remedy}")
    return report
