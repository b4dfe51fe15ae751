"""Downloading a file over HTTP: resumable, verified, and only ever whole at its final name."""

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock

from difformer._optional import require
from difformer.files import sha256

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


class DownloadError(OSError):
    """A download failed; the message says how far it came and what to do."""


def download(url: str, target: Path, *, digest: str | None = None, progress: bool = True) -> Path:
    """Fetches a file unless it is there already. What an interrupted call has fetched is kept beside the target
    (`.part`), and the next call goes on from there. Several processes may call it for the same file.

    Args:
        url: http or https address.
        target: where the file is to be; its folder is created.
        digest: expected SHA-256 in hexadecimal, when known.
        progress: show a progress bar.

    Returns:
        The target.

    Raises:
        DownloadError: the server refused, the connection broke, the disk is full or the digest is wrong.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            return target
        _fetch(url, part, progress)
        if digest is not None and (found := sha256(part)) != digest:
            part.unlink()
            raise DownloadError(f"{url}: the file's SHA-256 is {found}, expected {digest}; it was removed")
        os.replace(part, target)
    return target


def _fetch(url: str, part: Path, progress: bool) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            resumed = response.status == http.client.PARTIAL_CONTENT
            start = done if resumed else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            done = _receive(response, part, start, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and done:
            _finish_or_restart(url, part, done, error, progress)
            return
        raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        have = part.stat().st_size if part.exists() else 0
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{url}: {reason}; {have} bytes are kept in {part}, call again to go on from there"
        ) from error
    if total is not None and done != total:
        raise DownloadError(
            f"{url}: the connection ended after {done} of {total} bytes; call again to go on from there"
        )


def _receive(response: http.client.HTTPResponse, part: Path, start: int, total: int | None, progress: bool) -> int:
    tqdm = require("tqdm", "the progress bar").tqdm
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
    with bar, part.open("ab" if start else "wb") as file:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _finish_or_restart(url: str, part: Path, done: int, error: urllib.error.HTTPError, progress: bool) -> None:
    """The server has nothing after what is there: either that is the whole file, or it belongs to another one."""
    if error.headers.get("Content-Range") == f"bytes */{done}":
        return
    part.unlink()
    _fetch(url, part, progress)
