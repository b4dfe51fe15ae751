"""Downloading a file over HTTP: resumable, verified, and only ever whole at its final name."""

import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from difformer.files import sha256

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
# A strong entity tag; weak ones do not promise equal bytes.
_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e]*"')


class DownloadError(OSError):
    """A download failed; the message says how far it got and what to do."""


def download(url: str, target: Path, *, digest: str | None = None, progress: bool = True) -> Path:
    """Fetches a file unless it is there already. What an interrupted call has fetched is kept beside the target
    (`.part`, with the server's tag of the version in `.part.etag`), and the next call resumes from there when the
    server still has that version. Several processes may call it for the same file.

    Args:
        url: http or https address.
        target: where the file goes; its folder is created.
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
        # Continues the part if the server has the rest of it, else starts again.
        if not _attempt(url, part, progress):
            _forget(part)
            if not _attempt(url, part, progress):
                raise DownloadError(f"{url}: the server sends only a part of the file when asked for the whole")
        if digest is not None and (found := sha256(part)) != digest:
            _forget(part)
            raise DownloadError(f"{url}: the file's SHA-256 is {found}, expected {digest}; it was removed")
        os.replace(part, target)
        _forget(part)
    return target


def _attempt(url: str, part: Path, progress: bool) -> bool:
    """One request for the missing bytes; False when the answer does not continue the part."""
    done = part.stat().st_size if part.exists() else 0
    headers = {}
    if done:
        headers["Range"] = f"bytes={done}-"
        if tag := _known_tag(part):
            # A server whose file has another tag by now sends it whole.
            headers["If-Range"] = tag
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            place = _place(response, part, done)
            if place is None:
                return False
            start, total = place
            done = _receive(response, part, start, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and done:
            # Nothing follows the part: it is either the whole file, or a part of another one.
            return bool(error.headers.get("Content-Range") == f"bytes */{done}")
        raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        have = part.stat().st_size if part.exists() else 0
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{url}: {reason}; {have} bytes are kept in {part}, call again to resume from there"
        ) from error
    if total is not None and done != total:
        raise DownloadError(
            f"{url}: the connection ended after {done} of {total} bytes; call again to resume from there"
        )
    return True


def _place(response: http.client.HTTPResponse, part: Path, done: int) -> tuple[int, int | None] | None:
    """Where in the file an answer starts and how long the file is, if known; None when it does not continue `part`.

    Keeps the tag of a file that is sent from its start.
    """
    tag = response.headers.get("ETag") or ""
    if response.status != http.client.PARTIAL_CONTENT:
        _forget(part)  # before the new tag is written, which is not the tag of the old bytes
        if _STRONG_TAG.fullmatch(tag):
            _tag_file(part).write_text(tag)
        length = response.headers.get("Content-Length")
        return 0, int(length) if length else None
    known = _known_tag(part)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
    if span is None or int(span[1]) != done or (known and tag and tag != known):
        return None
    return done, None if span[2] == "*" else int(span[2])


def _known_tag(part: Path) -> str | None:
    file = _tag_file(part)
    tag = file.read_text(errors="replace") if file.exists() else ""
    return tag if _STRONG_TAG.fullmatch(tag) else None


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _receive(response: http.client.HTTPResponse, part: Path, start: int, total: int | None, progress: bool) -> int:
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
    with bar, part.open("ab" if start else "wb") as file:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
