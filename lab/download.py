"""Archives, from the first source that delivers the contents that are expected.

Mirrors come and go, some serve an error page with status 200, and each compresses anew. So no
source is trusted: the size and sha256 of the decompressed contents are checked before anything is
parsed or written.
"""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from lab.common.commands import output
from lab.common.files import InputError, read_bytes, root_cause
from lab.common.settings import Strict

APT = "apt:"  # what the name of a package of the distribution begins with
CHUNK = 1 << 16  # bytes
LARGEST = 64 << 20  # bytes; more than any of the archives, even stored without compression
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Name = Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]


class Archive(Strict):
    """What a gzip archive holds: the number of bytes and the sha256 of its contents."""

    bytes: Annotated[int, Field(ge=1, le=LARGEST)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Download(Strict):
    """Where archives are downloaded from, and what they hold."""

    sources: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=20)]
    connect_timeout: Seconds
    read_timeout: Seconds
    deadline: Seconds
    archives: Annotated[dict[Name, Archive], Field(min_length=1, max_length=100)]


class SourceError(Exception):
    """This source does not deliver; the message is one line."""


def fetch(settings: Download, variable: str) -> dict[str, bytes]:
    """The decompressed contents of all archives, by name, each as expected.

    The sources are asked in their order, after that of the environment's variable where it is
    set. What one source delivered is kept when the next is asked for the rest. Raises InputError
    for a source that is no folder, URL or package, and where no source is left, with the reason
    why each failed.
    """
    sources = [(source, "params.yaml: download.sources") for source in settings.sources]
    if own := os.environ.get(variable):
        sources.insert(0, (own, variable))
    for source, where in sources:
        _require_source(source, where)
    contents: dict[str, bytes] = {}
    failures = []
    for source, _ in sources:
        try:
            with _opened(source, settings) as read:
                for name, archive in settings.archives.items():
                    if name not in contents:
                        contents[name] = _verified(name, read(name), archive)
            return contents
        except SourceError as error:
            failures.append(f"{source}: {error}")
            print(failures[-1], file=sys.stderr)
    raise InputError("no source delivers the archives: " + "; ".join(failures))


def _require_source(source: str, where: str) -> None:
    """Raise InputError for anything but a folder, a URL or a package."""
    try:
        if source.startswith(APT):
            valid = source.removeprefix(APT).replace("-", "").isalnum()
        elif "://" in source:
            url = urlsplit(source)
            valid = url.scheme in ("http", "https") and bool(url.hostname)
        else:
            valid = bool(source) and Path(source).is_dir()
    except (ValueError, OSError):  # as of http://[/ or a name that is too long
        valid = False
    if not valid:
        raise InputError(
            f"{where}: expected a folder, the URL of one, or {APT}PACKAGE, found {source}"
        )


@contextlib.contextmanager
def _opened(source: str, settings: Download) -> Iterator[Callable[[str], bytes]]:
    """A function from the name of an archive to its bytes, which may raise SourceError."""
    if source.startswith(APT):
        with tempfile.TemporaryDirectory(prefix="package-") as folder:
            package = _unpacked(source.removeprefix(APT), Path(folder), settings.deadline)
            files = {path.name: path for path in package.rglob("*") if path.is_file()}
            yield lambda name: _read(files.get(name, package / name))
    elif "://" in source:
        yield lambda name: _downloaded(f"{source.rstrip('/')}/{name}", settings)
    else:
        yield lambda name: _read(Path(source, name))


def _verified(name: str, archive: bytes, expected: Archive) -> bytes:
    """The contents of the archive, if they are as expected."""
    try:
        # To the end and one byte more: only there are the checksum and what follows it
        # met, and an archive that would fill the memory is left at that byte.
        contents = gzip.GzipFile(fileobj=io.BytesIO(archive)).read(expected.bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{name} is damaged: {error}") from error
    if len(contents) != expected.bytes or hashlib.sha256(contents).hexdigest() != expected.sha256:
        raise SourceError(f"{name} holds something else than is expected")
    return contents


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST)
    except InputError as error:
        raise SourceError(str(error).replace(str(path), path.name)) from error


def _downloaded(url: str, settings: Download) -> bytes:
    import requests
    import urllib3
    from tqdm import tqdm

    name = url.rpartition("/")[2]
    archive = bytearray()
    deadline = time.monotonic() + settings.deadline
    timeout = (settings.connect_timeout, settings.read_timeout)
    bar = partial(tqdm, desc=name, unit="B", unit_scale=True, disable=None, leave=False)
    try:
        with (
            requests.get(url, stream=True, timeout=timeout) as answer,
            bar(total=answer.raw.length_remaining or None) as progress,
        ):
            answer.raise_for_status()
            # The raw bytes: a server may declare the archive's own gzip as transport encoding.
            # And what has come so far, as a server may send a byte at a time.
            while chunk := answer.raw.read1(CHUNK, decode_content=False):
                archive += chunk
                progress.update(len(chunk))
                if len(archive) > LARGEST:
                    raise SourceError(f"{name}: the answer does not end")
                if time.monotonic() > deadline:
                    raise SourceError(f"{name}: not complete after {settings.deadline:g} seconds")
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise SourceError(f"{name}: {_reason(error)}") from error
    return bytes(archive)


def _reason(error: BaseException) -> str:
    import requests

    if isinstance(error, requests.HTTPError):
        return f"status {error.response.status_code}"
    if isinstance(error, requests.TooManyRedirects):
        return "redirects without end"
    return root_cause(error)


def _unpacked(package: str, folder: Path, deadline: float) -> Path:
    """Fetch and unpack the package below `folder`; return where its files are.

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
    try:
        for command in ("update",), ("download", package):
            output([*apt, *command], folder, timeout=deadline)
        (archive,) = folder.glob(f"{package}_*.deb")
        output(["dpkg-deb", "--extract", archive, "contents"], folder, timeout=deadline)
    except (InputError, ValueError) as error:
        raise SourceError(str(error)) from error
    return folder / "contents"
