"""Writing files so that nothing is ever half there, and telling whether a file is the one expected."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 1 << 20


@contextmanager
def write_atomically(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside the target, and renames it to the target once it is whole and on the disk.

    When the body fails, the temporary file is removed and what was at the target stays as it was.

    Args:
        target: the file to write; its folder must exist.
        overwrite: whether a file that is already there may be replaced.

    Raises:
        FileExistsError: the target exists and may not be replaced.
        FileNotFoundError: the folder does not exist.
    """
    if target.is_dir():
        raise FileExistsError(f"{target} is a folder; give a file name")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; remove it, choose another name or ask to overwrite it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; create it first")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
