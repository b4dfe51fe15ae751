"""Writing files so that nothing is ever half there, and telling whether a file is the one expected."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
# The entry of a JSON file that holds the digest of its others.
_SEAL = "sha256"
# Errors of writing for which the system gives no file name. Other errors without one may concern any file.
_NAMELESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)


@contextlib.contextmanager
def write_atomically(target: Path, *, overwrite: bool = False, keep: Path | None = None) -> Iterator[Path]:
    """Gives a temporary path beside the target, and renames it to the target once it is whole and on the disk.

    When the body fails, the temporary file is removed and what was at the target stays as it was. The permissions of a
    replaced file are kept; a new file has those that the umask leaves. A symbolic link is followed. Several processes
    and threads may write the same target: the last one wins.

    Args:
        target: the file to write; its folder must exist. A leading `~` is the home folder.
        overwrite: whether a file that is already there may be replaced.
        keep: where the replaced file is moved, on the same disk; it is deleted when None.

    Raises:
        FileExistsError: the target exists and may not be replaced.
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be written, such as on a full disk; the error names the target.
    """
    _check_place(target, overwrite=overwrite)
    target = expand_user(target).resolve()
    # Shortened, since with the endings a long name could become too long.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        with errors_name(target, temporary):
            # Created here, and not by the body, to learn what the umask leaves; some libraries write with less.
            temporary.touch(exist_ok=False)
            mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)
            if keep is not None and target.exists():
                _replace_keeping(temporary, target, keep)
            else:
                os.replace(temporary, target)
            _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _replace_keeping(new: Path, target: Path, keep: Path) -> None:
    """Renames a file to the target, and the old target to `keep`. The target exists at all times, except for a moment
    on disks without hard links.
    """
    try:
        keep.unlink(missing_ok=True)
        os.link(target, keep)
    except OSError:
        os.replace(target, keep)
        try:
            os.replace(new, target)
        except BaseException:
            os.replace(keep, target)
            raise
    else:
        os.replace(new, target)


@contextlib.contextmanager
def errors_name(target: Path, temporary: Path | None = None) -> Iterator[None]:
    """Makes system errors name the file that the user knows: errors of a full disk name none, and others name the
    temporary file.

    Args:
        target: the file or folder that is written.
        temporary: its temporary name, or the folder it lies in, until it is whole.
    """
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        hidden = temporary is not None and named is not None and temporary in (named, *named.parents)
        if error.filename2 is None and (hidden or (named is None and error.errno in _NAMELESS)):
            error.filename = str(target)
        raise


def check_target(target: Path, *, overwrite: bool = False, ending: str | None = None) -> None:
    """Checks before long work that its result can be written.

    Args:
        target: the file to write. A leading `~` is the home folder.
        overwrite: whether a file that is already there may be replaced.
        ending: of the format that is written, such as ".png"; the name may have this ending or none.

    Raises:
        ValueError: the name has another format's ending.
        FileExistsError: the target exists and may not be replaced, or is a folder.
        FileNotFoundError: the folder does not exist.
        OSError: nothing can be written in the folder.
    """
    if ending is not None and target.suffix.lower() not in ("", ending):
        raise ValueError(f"{target} is written as {ending}; give it a name that ends in {ending}")
    _check_place(target, overwrite=overwrite)
    check_writable(expand_user(target).resolve().parent)


def check_writable(folder: Path) -> None:
    """Checks before long work that files can be written in a folder, which need not exist yet.

    Raises:
        OSError: the folder cannot be written to, or cannot be created.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".difformer.", dir=there):
            pass
    except OSError as error:
        what = f"nothing can be written there ({error.strerror}); choose another place"
        raise OSError(error.errno, what, str(there)) from error


def _check_place(target: Path, *, overwrite: bool) -> None:
    target = expand_user(target)
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


def cache_folder() -> Path:
    """Where downloads go, and digests of images: `$DIFFORMER_CACHE`, else `difformer` in the user's cache folder."""
    if path := os.environ.get("DIFFORMER_CACHE"):
        return expand_user(path)
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "difformer"


def _sync_folder(folder: Path) -> None:
    """Makes a renaming last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path, *, size: int | None = None) -> str:
    """Hexadecimal SHA-256 of a file, or of its first `size` bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = path.stat().st_size if size is None else size
        while chunk := file.read(min(_CHUNK, left)):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


# The remedy for a damaged file of a command that makes missing files again.
MADE_ANEW = "remove it, and the same command makes it again"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of its entries, by which `read_json` notices damage.

    Args:
        content: entries with any name except "sha256", which the digest has.
    """
    return {**content, _SEAL: _seal_of(content)}


def read_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file that this package wrote, without the digest where it is `sealed`.

    Files of earlier versions have no digest: damage to them is noticed only where they are no longer JSON. An entry
    "sha256" of an object is always taken for the digest.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # Deeply nested brackets raise RecursionError.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    if isinstance(content, dict) and _SEAL in content and content.pop(_SEAL) != _seal_of(content):
        raise ValueError(f"{path} is damaged: its content does not have the digest it was written with; {remedy}")
    return content


def _seal_of(content: Mapping[str, Any]) -> str:
    # As it will be read: JSON turns keys that are numbers into text, which is sorted differently.
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
