"""Folders of results that appear whole or not at all."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from difformer.files import check_writable, errors_name, expand_user
from difformer.tables import write_rows


class ResultFolder:
    """Where an evaluation leaves its files.

    Args:
        path: the folder. A leading `~` is the home folder.
        names: of all files that may be in it; `*` stands for anything, as in `image-*.png`.
    """

    def __init__(self, path: str | Path, names: Collection[str]) -> None:
        self.path = expand_user(path)
        self.names = frozenset(names)

    def check(self, *, overwrite: bool) -> None:
        """Finds out before long work that the results could not be written.

        Raises:
            FileExistsError: it is a file, holds what is no result, or holds results that are not to be replaced.
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
        """Gives a temporary folder beside it, which takes its place at the end; after an error, nothing has changed.

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
                _sync(temporary)
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


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file; of None, nothing is written."""
    # File names may hold bytes that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write_rows(file, [header, *rows])


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
