"""Downloads against a real server on this machine."""

import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from diffinf_lib.data import download
from diffinf_lib.data.download import extract, fetch
from diffinf_lib.errors import DownloadError

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    ranges = True
    cut_after: int | None = None  # close the connection after so many bytes, once
    requests: list[str | None] = []  # noqa: RUF012

    def do_GET(self):
        kind = type(self)
        asked = self.headers.get("Range")
        kind.requests.append(asked)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, kind.cut_after = kind.cut_after, None
        self.wfile.write(body[:cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("DIFFINF_OFFLINE", "0")
    handler = type("Handler", (Server,), {"requests": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{running.server_port}/file"
    yield handler
    running.shutdown()
    thread.join()


def test_a_file_is_fetched_once(server, tmp_path):
    path = fetch(server.url, tmp_path / "sub" / "f", DIGEST)
    assert path.read_bytes() == CONTENT
    fetch(server.url, path, DIGEST)
    assert server.requests == [None] and [p.name for p in path.parent.iterdir()] == ["f"]


def test_a_cut_connection_is_continued(server, tmp_path):
    server.cut_after = 100_000
    assert fetch(server.url, tmp_path / "f", DIGEST).read_bytes() == CONTENT
    assert len(server.requests) == 2 and server.requests[1].startswith("bytes=")
    assert int(server.requests[1].removeprefix("bytes=").rstrip("-")) > 0


def test_a_killed_download_is_continued(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT[:12345])
    assert fetch(server.url, tmp_path / "f", DIGEST).read_bytes() == CONTENT
    assert server.requests == ["bytes=12345-"]


def test_a_complete_part_needs_no_bytes(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "f", DIGEST).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "f.part").write_bytes(b"x" * 500)
    assert fetch(server.url, tmp_path / "f", DIGEST).read_bytes() == CONTENT


def test_a_wrong_digest_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match="not 0000"):
        fetch(server.url, tmp_path / "f", "0000")
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_way_out(server, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match=r"HTTPError after 4 attempts\); place the file at"):
        fetch(server.url.replace("file", "missing"), tmp_path / "f", DIGEST)
    with pytest.raises(DownloadError, match="ConnectionError"):
        fetch("http://127.0.0.1:9/file", tmp_path / "f", DIGEST)
    monkeypatch.setenv("DIFFINF_OFFLINE", "1")
    with pytest.raises(DownloadError, match="DIFFINF_OFFLINE=1 forbids downloads"):
        fetch(server.url, tmp_path / "f", DIGEST)
    assert download.is_offline()


def test_archives_stay_inside_their_folder(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("../outside")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(tarfile.FilterError):
        extract(tmp_path / "bad.tar", tmp_path / "folder")
    assert not (tmp_path / "outside").exists() and not (tmp_path / "folder").exists()
