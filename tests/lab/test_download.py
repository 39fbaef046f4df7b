"""The true contents arrive from the first source that has them, or one error says why not.

Real archives and a real HTTP server; only the expected contents are small ones.
"""

import gzip
import hashlib
import http.server
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import download
from lab.files import InputError

NAMES = ["images.gz", "labels.gz"]
TRUE = {"images.gz": bytes(range(256)) * 300, "labels.gz": b"\x01\x02" * 50}
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def _small_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: (len(c), hashlib.sha256(c).hexdigest()) for name, c in TRUE.items()}
    monkeypatch.setattr(download, "CONTENTS", sizes)
    monkeypatch.setattr(download, "MIRRORS", ())
    monkeypatch.setattr(download, "TIMEOUT", (1, 1))
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no apt
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, contents in TRUE.items():
        (folder / name).write_bytes(gzip.compress(contents))
    return folder


class Server:
    """An HTTP server on this machine that answers as it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def send(
    body: bytes, status: int = 200, length: int | None = None, headers: dict[str, str] | None = None
) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def files_of(folder: Path, headers: dict[str, str] | None = None) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        body = (folder / request.path.rpartition("/")[2]).read_bytes()
        send(body, headers=headers)(request)

    return answer


def test_a_folder_and_a_url_deliver(mirror: Path, serve: Callable[[Answer], Server]) -> None:
    assert download.fetch(NAMES, [str(mirror)]) == TRUE
    assert download.fetch(NAMES, [serve(files_of(mirror)).url]) == TRUE


def test_an_archive_declared_as_transport_encoding_is_not_unpacked_twice(
    mirror: Path, serve: Callable[[Answer], Server]
) -> None:
    server = serve(files_of(mirror, {"Content-Encoding": "gzip"}))
    assert download.fetch(NAMES, [server.url]) == TRUE


def test_the_users_mirror_comes_first(
    mirror: Path, serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = serve(files_of(mirror))
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(mirror))
    assert download.fetch(NAMES, [other.url]) == TRUE
    assert not other.asked
    monkeypatch.delenv("FASHION_MNIST_MIRROR")
    download.fetch(NAMES, [other.url])
    assert other.asked == ["/images.gz", "/labels.gz"]


def test_what_a_source_delivered_is_not_asked_for_again(
    mirror: Path, tmp_path: Path, serve: Callable[[Answer], Server]
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(mirror / "images.gz", half)
    whole = serve(files_of(mirror))
    assert download.fetch(NAMES, [str(half), whole.url]) == TRUE
    assert whole.asked == ["/labels.gz"]


def _truncated(archive: bytes) -> bytes:
    return archive[: len(archive) // 2]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda a: b"",
    "truncated": _truncated,
    "without its checksum": lambda a: a[:-8],
    "checksum wrong": lambda a: a[:-8] + bytes(4) + a[-4:],
    "a bit flipped": lambda a: a[:40] + bytes([a[40] ^ 4]) + a[41:],
    "trailing bytes": lambda a: a + b"x",
    "a second member": lambda a: a + gzip.compress(b"more"),
    "other contents": lambda a: gzip.compress(b"other"),
    "contents of the same size": lambda a: gzip.compress(bytes(len(gzip.decompress(a)))),
    "no archive": lambda a: b"<html>Moved</html>",
    "a bomb": lambda a: gzip.compress(bytes(50_000_000)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_archive_moves_on_to_the_next_source(
    mirror: Path, tmp_path: Path, how: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(mirror, bad)
    archive = bad / "images.gz"
    archive.write_bytes(DAMAGE[how](archive.read_bytes()))
    assert download.fetch(NAMES, [str(bad), str(mirror)]) == TRUE
    with pytest.raises(InputError, match=r"bad: images\.gz (is damaged|holds something else)"):
        download.fetch(NAMES, [str(bad)])


def _stall(request: http.server.BaseHTTPRequestHandler) -> None:
    send(b"x", length=1000)(request)
    time.sleep(5)


def _redirect(request: http.server.BaseHTTPRequestHandler) -> None:
    send(b"", status=302, headers={"Location": request.path})(request)


FAULTS: dict[str, tuple[Answer, str]] = {
    "an error page with status 200": (send(b"<html>Welcome</html>"), "is damaged: Not a gzipped"),
    "status 404": (send(b"gone", status=404), "status 404"),
    "status 500": (send(b"", status=500), "status 500"),
    "drops half-way": (send(b"half", length=1000), "4 bytes read, 996 more expected"),
    "stalls": (_stall, "Read timed out|timed out"),
    "redirects without end": (_redirect, "redirects without end"),
    "hangs up": (lambda request: request.connection.close(), "onnection|closed|respon"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_server_moves_on_to_the_next_source(
    mirror: Path, serve: Callable[[Answer], Server], fault: str
) -> None:
    answer, reason = FAULTS[fault]
    server = serve(answer)
    assert download.fetch(NAMES, [server.url, str(mirror)]) == TRUE
    with pytest.raises(InputError, match=reason) as error:
        download.fetch(NAMES, [server.url])
    assert "\n" not in str(error.value)


def test_an_endless_answer_is_left(
    serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(bytes(100_000))

    monkeypatch.setattr(download, "LARGEST", 1_000_000)
    with pytest.raises(InputError, match="does not end"):
        download.fetch(NAMES, [serve(endless).url])


def test_when_all_fail_each_source_is_named_with_its_reason(mirror: Path, tmp_path: Path) -> None:
    (mirror / "labels.gz").unlink()
    with pytest.raises(InputError) as error:
        download.fetch(NAMES, [str(tmp_path / "none"), str(mirror), "http://127.0.0.1:9/"])
    heading, _, reasons = str(error.value).partition(": ")
    assert heading == "no source delivers Fashion-MNIST"
    first, second, third, debian = reasons.split("; ")
    assert "none: images.gz: No such file" in first
    assert "mirror: labels.gz: No such file" in second
    assert "http://127.0.0.1:9/: labels.gz" in third and "Connection refused" in third
    assert "no apt here" in debian


@pytest.mark.slow
def test_debians_package_delivers_the_true_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not shutil.which("apt-get"):
        pytest.skip("no apt here")
    monkeypatch.setattr(download, "MIRRORS", ())
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    before = {p: p.stat().st_mtime_ns for p in Path("/var/lib/apt").rglob("*")}
    names = [name for name in download.CONTENTS if "labels" in name]
    try:
        contents = download.fetch(names, [])
    except InputError as error:
        if re.search("resolve|connect|fetch|not done after|locate package", str(error)):
            pytest.skip(f"apt reaches no repository: {error}")
        raise
    assert {name: len(c) for name, c in contents.items()} == {
        "train-labels-idx1-ubyte.gz": 60_008,
        "t10k-labels-idx1-ubyte.gz": 10_008,
    }
    assert {p: p.stat().st_mtime_ns for p in Path("/var/lib/apt").rglob("*")} == before
