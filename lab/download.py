"""The four archives of Fashion-MNIST, from the first source that delivers the true contents.

Mirrors come and go, some serve an error page with status 200, and each compresses
anew. So a source is believed for nothing: what counts is the sha256 of the
decompressed contents, checked before anything is parsed or written.
"""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from lab.files import InputError, root_cause

# Name of the archive: size and sha256 of its decompressed contents.
CONTENTS = {
    "train-images-idx3-ubyte.gz": (
        47_040_016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": (
        60_008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": (
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        10_008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
PACKAGE = "dataset-fashion-mnist"
DEBIAN = f"Debian's package {PACKAGE}"
TIMEOUT = (5, 20)  # seconds to connect, and between two pieces of an answer
DEADLINE = 600  # seconds for one archive or one command
CHUNK = 1 << 16  # bytes
LARGEST = 64 << 20  # bytes; more than any of the four, even stored without compression


class SourceError(Exception):
    """This source does not deliver; the message is one line."""


def fetch(names: list[str], mirrors: list[str]) -> dict[str, bytes]:
    """The decompressed contents of the named archives, each the true ones.

    Sources, in this order: FASHION_MNIST_MIRROR (a folder or URL) where it is set,
    the given mirrors, MIRRORS, and Debian's package where apt exists. What one
    source delivered is kept when the next is asked for the rest. Raises InputError,
    which says why each failed, when none is left.
    """
    contents: dict[str, bytes] = {}
    failures = []
    own = os.environ.get("FASHION_MNIST_MIRROR")
    for place in [*([own] if own else []), *mirrors, *MIRRORS, DEBIAN]:
        try:
            with _source(place) as read:
                for name in names:
                    if name not in contents:
                        contents[name] = _verified(name, read(name))
            return contents
        except SourceError as error:
            failures.append(f"{place}: {error}")
            tqdm.write(failures[-1], file=sys.stderr)
    raise InputError("no source delivers Fashion-MNIST: " + "; ".join(failures))


@contextlib.contextmanager
def _source(place: str) -> Iterator[Callable[[str], bytes]]:
    """A function from the name of an archive to its bytes, which may raise SourceError."""
    if place == DEBIAN:
        with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as folder:
            archives = _debian_package(Path(folder))
            yield lambda name: _read(archives / name)
    elif "://" in place:
        yield lambda name: _download(f"{place.rstrip('/')}/{name}")
    else:
        yield lambda name: _read(Path(place, name))


def _verified(name: str, archive: bytes) -> bytes:
    """The contents of the archive, if they are the true ones."""
    size, digest = CONTENTS[name]
    try:
        # To the end and one byte more: only there are the checksum and what follows it
        # met, and an archive that would fill the memory is left at that byte.
        contents = gzip.GzipFile(fileobj=io.BytesIO(archive)).read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{name} is damaged: {error}") from error
    if len(contents) != size or hashlib.sha256(contents).hexdigest() != digest:
        raise SourceError(f"{name} holds something else than Fashion-MNIST")
    return contents


def _read(path: Path) -> bytes:
    try:
        if path.is_fifo():  # whose other end may never come
            raise SourceError(f"{path.name}: expected a file, found a named pipe")
        with path.open("rb") as file:
            archive = file.read(LARGEST + 1)
    except OSError as error:
        raise SourceError(f"{path.name}: {error.strerror}") from error
    if len(archive) > LARGEST:
        raise SourceError(f"{path.name} is larger than any archive of Fashion-MNIST")
    return archive


def _download(url: str) -> bytes:
    name = url.rpartition("/")[2]
    archive = bytearray()
    deadline = time.monotonic() + DEADLINE
    try:
        with (
            requests.get(url, stream=True, timeout=TIMEOUT) as answer,
            tqdm(
                total=answer.raw.length_remaining or None,
                desc=name, unit="B", unit_scale=True, disable=None, leave=False,
            ) as progress,
        ):  # fmt: skip
            answer.raise_for_status()
            # The raw bytes: a server may declare the archive's own gzip as transport encoding.
            # And what has come so far, as a server may send a byte at a time.
            while chunk := answer.raw.read1(CHUNK, decode_content=False):
                archive += chunk
                progress.update(len(chunk))
                if len(archive) > LARGEST:
                    raise SourceError(f"{name}: the answer does not end")
                if time.monotonic() > deadline:
                    raise SourceError(f"{name}: not complete after {DEADLINE} seconds")
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise SourceError(f"{name}: {_reason(error)}") from error
    return bytes(archive)


def _reason(error: BaseException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"status {error.response.status_code}"
    if isinstance(error, requests.TooManyRedirects):
        return "redirects without end"
    return root_cause(error)


def _debian_package(folder: Path) -> Path:
    """Fetch and unpack the package below `folder`; return where its archives lie.

    By apt with all of its state below `folder`: no rights needed, nothing installed,
    and the system's lists, cache and hooks left alone.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SourceError("no apt here")
    for part in ("state", "lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    settings = folder / "apt.conf"
    settings.write_text(
        f'''
        Dir::State "{folder}/state";
        Dir::State::Lists "{folder}/lists";
        Dir::State::status "/var/lib/dpkg/status";
        Dir::Cache "{folder}/cache";
        APT::Sandbox::User "";
        Acquire::Retries "1";
        Acquire::http::Timeout "20";
        Acquire::https::Timeout "20";
        #clear APT::Update::Pre-Invoke;
        #clear APT::Update::Post-Invoke;
        #clear APT::Update::Post-Invoke-Success;
        '''
    )
    apt = ["apt-get", "--quiet=2", f"--config-file={settings}"]
    _command([*apt, "update"], folder)
    _command([*apt, "download", PACKAGE], folder)
    packages = list(folder.glob(f"{PACKAGE}_*.deb"))
    if len(packages) != 1:
        raise SourceError("apt-get download brought no package")
    _command(["dpkg-deb", "--extract", str(packages[0]), "contents"], folder)
    return folder / "contents/usr/share/datasets/fashion-mnist"


def _command(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, timeout=DEADLINE, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{command[0]}: not done after {DEADLINE} seconds") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise SourceError(f"{command[0]}: {last}") from error
