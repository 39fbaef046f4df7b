"""Inputs for the tests: parameters with a change, HTTP servers, special files."""

import contextlib
import copy
import functools
import http.server
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lab import download, params
from tracking.repository import ROOT

Request = http.server.BaseHTTPRequestHandler
GOOD = (ROOT / "tests/params.yaml").read_text(encoding="utf-8")
TREE: dict[str, Any] = YAML(typ="safe", pure=True).load(GOOD)


def replaced(old: str, new: str) -> str:
    """The good parameters with one change."""
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def edited(keys: tuple[str, ...], entries: dict[str, Any]) -> str:
    """The good parameters as JSON, with other entries in place of a key."""
    section = tree = copy.deepcopy(TREE)
    for key in keys[:-1]:
        section = section[key]
    del section[keys[-1]]
    section.update(entries)
    return json.dumps(tree)


@contextlib.contextmanager
def serving(answer: Callable[[Request], bytes], port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that sends these bytes, and the paths that were requested."""
    paths: list[str] = []

    class Handler(Request):
        def handle_request(self) -> None:
            paths.append(self.path)
            with contextlib.suppress(OSError):  # the client has left
                self.wfile.write(answer(self))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The address of a port that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def page(body: bytes, status: int = 200, header: str = "Content-Length: {size}") -> bytes:
    """An answer with one header line."""
    line = header.format(size=len(body))
    return f"HTTP/1.1 {status} Status\r\n{line}\r\n\r\n".encode() + body


def settings(*sources: str, **changes: object) -> download.Download:
    """The download of tests/params.yaml from these sources."""
    return _download().model_copy(update={"sources": sources, **changes})


@functools.cache
def _download() -> download.Download:
    good = params.load(ROOT / "tests/params.yaml").download
    assert good
    return good


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
