"""Writing files so that nothing is ever half there, and telling whether a file is the one expected."""

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20


@contextlib.contextmanager
def write_atomically(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside the target, and renames it to the target once it is whole and on the disk.

    When the body fails, the temporary file is removed and what was at the target stays as it was. A file that is
    replaced hands on its permissions; a new one has those the umask leaves. Of a symbolic link, what it points to is
    written. Several processes and threads may write the same target: the last one wins.

    Args:
        target: the file to write; its folder must exist. A leading `~` is the home folder.
        overwrite: whether a file that is already there may be replaced.

    Raises:
        FileExistsError: the target exists and may not be replaced.
        FileNotFoundError: the folder does not exist.
    """
    check_target(target, overwrite=overwrite)
    target = expand_user(target).resolve()
    # Shortened, since with the endings a long name could become too long.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        # Created here, and not by the body, to learn what the umask leaves; some libraries write with less.
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(target: Path, *, overwrite: bool = False, ending: str | None = None) -> None:
    """Finds out before long work that its result could not be written.

    Args:
        target: the file to write. A leading `~` is the home folder.
        overwrite: whether a file that is already there may be replaced.
        ending: of the format that is written, such as ".png"; a name may have it or none.

    Raises:
        ValueError: the name has another format's ending.
        FileExistsError: the target exists and may not be replaced, or is a folder.
        FileNotFoundError: the folder does not exist.
    """
    target = expand_user(target)
    if ending is not None and target.suffix.lower() not in ("", ending):
        raise ValueError(f"{target} would hold what {ending} files do; give it a name that ends in {ending}")
    if target.is_dir():
        raise FileExistsError(f"{target} is a folder; give a file name")
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} exists already; remove it, choose another name, or overwrite it (--overwrite, overwrite=True)"
        )
    if not target.resolve().parent.is_dir():
        raise FileNotFoundError(f"the folder {target.resolve().parent} does not exist; create it first")


def expand_user(path: str | Path) -> Path:
    """A path whose leading `~` is replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(path))


def _sync_folder(folder: Path) -> None:
    """Makes a renaming last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
