"""Faulty inputs for the tests: an HTTP server, and special files in place of a file."""

import contextlib
import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import download, params
from tracking.repository import ROOT

Request = http.server.BaseHTTPRequestHandler


@contextlib.contextmanager
def serving(answer: Callable[[Request], bytes]) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that sends these bytes, and the paths that were requested."""
    paths: list[str] = []

    class Handler(Request):
        def do_GET(self) -> None:  # noqa: N802
            paths.append(self.path)
            with contextlib.suppress(OSError):  # the client has left
                self.wfile.write(answer(self))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", paths
        server.shutdown()


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The address of a port that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/"


def page(body: bytes, status: int = 200, header: str = "Content-Length: {size}") -> bytes:
    """An answer with one header line."""
    line = header.format(size=len(body))
    return f"HTTP/1.1 {status} Status\r\n{line}\r\n\r\n".encode() + body


def settings(*sources: str, **changes: object) -> download.Download:
    """The download of tests/params.yaml from these sources."""
    good = params.load(ROOT / "tests/params.yaml").download
    assert good
    return good.model_copy(update={"sources": sources, **changes})


def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no source but those that are given."""
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def _bind_socket(path: Path) -> None:
    # The whole path may be too long for a socket.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


# What is in place of a file: how it is made, and why it cannot be read.
SPECIAL_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda path: None, "No such file"),
    "a folder": (Path.mkdir, "Is a directory"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "a link through a file": (lambda path: path.symlink_to("/etc/passwd/none"), "Not a directory"),
    "a socket": (_bind_socket, "No such device|not supported"),
    "a named pipe": (os.mkfifo, "expected a file, found a named pipe"),
}
