"""The download against a real HTTP server that can be told to misbehave."""

import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from difformer.checkpoints import DownloadError, download

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves a file at /weights.pt.

    Attributes:
        cut_after: break the connection after this many bytes of a response.
        ranges: whether it understands range requests.
        content: what is at /weights.pt.
        tag: its ETag.
        shift: how far the pieces it sends start from where they were asked for.
        requests: the Range header of each request.
    """

    content = CONTENT
    tag: str | None = None
    shift = 0

    cut_after: int | None = None
    ranges = True
    requests: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.requests.append(self.headers.get("Range"))
        if self.path != "/weights.pt":
            self.send_error(404, "Not Found")
            return
        start, content, tag = 0, self.server.content, self.server.tag
        same = self.headers.get("If-Range") in (None, tag)
        if self.server.ranges and same and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.server.shift
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = None if self.server.cut_after is None else start + self.server.cut_after
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}/weights.pt"


def test_a_whole_download(server, url, tmp_path, capsys):
    target = tmp_path / "new" / "weights.pt"
    assert download(url, target, digest=DIGEST) == target
    assert target.read_bytes() == CONTENT
    assert "weights.pt" in capsys.readouterr().err  # the progress bar
    assert not list(target.parent.glob("*.part"))
    download(url, target, digest=DIGEST)
    assert server.requests == [None]


def test_an_interrupted_download_goes_on_where_it_stopped(server, url, tmp_path):
    target = tmp_path / "weights.pt"
    server.cut_after = 500_000
    with pytest.raises(DownloadError, match=r"after 500000 of 1280000 bytes; call again"):
        download(url, target, progress=False)
    assert not target.exists()
    server.cut_after = None
    download(url, target, digest=DIGEST, progress=False)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=500000-"]


def test_a_server_without_ranges_starts_again(server, url, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(b"old" * 100)
    server.ranges = False
    download(url, tmp_path / "weights.pt", digest=DIGEST, progress=False)
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_whole_or_too_long(url, tmp_path, extra):
    (tmp_path / "weights.pt.part").write_bytes(CONTENT + b"x" * extra)
    download(url, tmp_path / "weights.pt", digest=DIGEST, progress=False)
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


def test_a_wrong_digest_keeps_nothing(url, tmp_path):
    with pytest.raises(DownloadError, match=f"SHA-256 is {DIGEST}, expected {'0' * 64}"):
        download(url, tmp_path / "weights.pt", digest="0" * 64, progress=False)
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])


def test_not_found(url, tmp_path):
    with pytest.raises(DownloadError, match=r"nothing\.pt: the server answered 404"):
        download(url.replace("weights", "nothing"), tmp_path / "weights.pt", progress=False)
    assert not (tmp_path / "weights.pt").exists()


def test_no_server(server, tmp_path):
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:1/.*refused"):
        download("http://127.0.0.1:1/weights.pt", tmp_path / "weights.pt", progress=False)


def test_several_callers_fetch_once(server, url, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download(url, tmp_path / "weights.pt", digest=DIGEST, progress=False), range(4)))
    assert server.requests == [None]
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


def interrupt(server, url, target, tag):
    server.tag, server.cut_after = tag, 500_000
    with pytest.raises(DownloadError, match="call again"):
        download(url, target, progress=False)
    server.cut_after = None


@pytest.mark.parametrize("tag", ['"one"', 'W/"one"', None])
def test_the_same_version_is_gone_on_with(server, url, tmp_path, tag):
    interrupt(server, url, tmp_path / "weights.pt", tag)
    download(url, tmp_path / "weights.pt", progress=False)
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=500000-"]
    assert {path.suffix for path in tmp_path.iterdir()} <= {".pt", ".lock"}


def test_two_versions_are_never_spliced(server, url, tmp_path):
    interrupt(server, url, tmp_path / "weights.pt", '"one"')
    server.tag, server.content = '"two"', CONTENT[::-1]
    download(url, tmp_path / "weights.pt", progress=False)
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT[::-1]


def test_an_interrupted_second_version_is_gone_on_with(server, url, tmp_path):
    interrupt(server, url, tmp_path / "weights.pt", '"one"')
    server.content = CONTENT[::-1]
    interrupt(server, url, tmp_path / "weights.pt", '"two"')
    download(url, tmp_path / "weights.pt", progress=False)
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT[::-1]
    assert server.requests == [None, "bytes=500000-", "bytes=500000-"]


def test_a_piece_from_elsewhere_starts_it_again(server, url, tmp_path):
    interrupt(server, url, tmp_path / "weights.pt", None)
    server.shift = 7
    download(url, tmp_path / "weights.pt", progress=False)
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=500000-", None]


def test_a_wrong_digest_leaves_no_tag_either(server, url, tmp_path):
    server.tag = '"one"'
    with pytest.raises(DownloadError, match="SHA-256"):
        download(url, tmp_path / "weights.pt", digest="0" * 64, progress=False)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
