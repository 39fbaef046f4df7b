"""Archives, from the first source that delivers the contents that are expected.

No source is trusted: size and sha256 of the decompressed contents are checked before any use.
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

from pydantic import DirectoryPath, Field, HttpUrl, TypeAdapter, ValidationError

from lab.common.commands import output
from lab.common.files import InputError, read_bytes, root_cause
from lab.common.settings import Strict

APT = "apt:"  # what the name of a package of the distribution begins with
CHUNK = 1 << 16  # bytes
SOURCE = TypeAdapter[object](
    Annotated[str, Field(pattern=f"^{APT}[a-z0-9][a-z0-9+.-]*$")] | HttpUrl | DirectoryPath
)
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


def fetch(settings: Download, variable: str) -> dict[str, bytes]:
    """The decompressed contents of all archives, by name, each as expected.

    The environment's variable may name the first source. Each source is asked for what is missing.
    Raises InputError for what is no source, and where all fail, with the reason of each.
    """
    sources = [(source, "params.yaml: download.sources") for source in settings.sources]
    if own := os.environ.get(variable):
        sources.insert(0, (own, variable))
    for source, where in sources:
        try:
            SOURCE.validate_python(source or None)  # an empty path would be the current folder
        except ValidationError as error:
            expected = f"expected a folder, the URL of one, or {APT}PACKAGE"
            raise InputError(f"{where}: {expected}, found {source}") from error
    contents: dict[str, bytes] = {}
    failures = []
    for source, _ in sources:
        try:
            with _opened(source, settings) as read:
                for name, archive in settings.archives.items():
                    if name not in contents:
                        contents[name] = _verified(name, read(name), archive)
            return contents
        except InputError as error:
            failures.append(f"{source}: {str(error).removeprefix(f'{source}/')}")
            print(failures[-1], file=sys.stderr)
    raise InputError("no source delivers the archives: " + "; ".join(failures))


@contextlib.contextmanager
def _opened(source: str, settings: Download) -> Iterator[Callable[[str], bytes]]:
    """A function from the name of an archive to its bytes. It raises InputError if that fails."""
    if source.startswith(APT):
        with tempfile.TemporaryDirectory(prefix="package-") as folder:
            package = _unpacked(source.removeprefix(APT), Path(folder), settings.deadline)
            files = {path.name: path for path in package.rglob("*") if path.is_file()}
            yield lambda name: read_bytes(files.get(name, package / name), LARGEST)
    elif "://" in source:
        yield lambda name: _downloaded(f"{source.rstrip('/')}/{name}", settings)
    else:
        yield lambda name: read_bytes(Path(source, name), LARGEST)


def _verified(name: str, archive: bytes, expected: Archive) -> bytes:
    """The contents of the archive, if they are as expected."""
    try:
        # To the end and one byte more: only there are the checksum and what follows it
        # met, and an archive that would fill the memory is left at that byte.
        contents = gzip.GzipFile(fileobj=io.BytesIO(archive)).read(expected.bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} is damaged: {error}") from error
    if len(contents) != expected.bytes or hashlib.sha256(contents).hexdigest() != expected.sha256:
        raise InputError(f"{name} holds something else than is expected")
    return contents


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
                    raise InputError(f"{name}: the answer does not end")
                if time.monotonic() > deadline:
                    raise InputError(f"{name}: not complete after {settings.deadline:g} seconds")
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise InputError(f"{name}: {root_cause(error)}") from error
    return bytes(archive)


def _unpacked(package: str, folder: Path, deadline: float) -> Path:
    """Fetch and unpack the package below `folder`; return where its files are.

    All of apt's state is below `folder`, so it needs no rights and changes nothing else.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise InputError("no apt here")
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
        #clear APT::Update::Pre-Invoke;
        #clear APT::Update::Post-Invoke;
        #clear APT::Update::Post-Invoke-Success;
        '''
    )
    apt = ["apt-get", "--quiet=2", f"--config-file={settings}"]
    for command in ("update",), ("download", package):
        output([*apt, *command], folder, timeout=deadline)
    (archive,) = folder.glob(f"{package}_*.deb")
    output(["dpkg-deb", "--extract", archive, "contents"], folder, timeout=deadline)
    return folder / "contents"
