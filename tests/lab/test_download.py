"""Archives arrive from the first source that has them, or one error names every source.

Faulty archives and servers are in tests/faults/test_archives.py. Here the contents are small ones.
"""

import gzip
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import download
from lab.common.files import InputError
from tests.inputs import no_proxy, page, refusing, serving, settings

TRUE = {"images.gz": bytes(range(256)) * 300, "labels.gz": b"\x01\x02" * 50}
ARCHIVES = {
    name: download.Archive(bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest())
    for name, contents in TRUE.items()
}
Server = tuple[str, list[str]]  # its address, and the paths that were requested


@pytest.fixture(autouse=True)
def _given_sources_only(monkeypatch: pytest.MonkeyPatch) -> None:
    no_proxy(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with both archives."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, contents in TRUE.items():
        (folder / name).write_bytes(gzip.compress(contents))
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    """A server with both archives."""
    with serving(lambda request: page((folder / request.path[1:]).read_bytes())) as found:
        yield found


def fetch(*sources: str | Path) -> dict[str, bytes]:
    chosen = settings(*map(str, sources), archives=ARCHIVES)
    return download.fetch(chosen, "FASHION_MNIST_MIRROR")


def test_the_first_source_that_has_an_archive_delivers_it(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, paths = server
    assert fetch(folder, url) == TRUE and not paths
    assert fetch(url, folder) == TRUE and paths == ["/images.gz", "/labels.gz"]
    half = folder.parent / "half"
    half.mkdir()
    shutil.copy(folder / "images.gz", half)
    assert fetch(half, url) == TRUE and paths[2:] == ["/labels.gz"]
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(folder))  # the user's own source is the first
    assert fetch(url) == TRUE and not paths[3:]


def test_when_all_fail_the_message_names_each_source_and_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "labels.gz").unlink()
    monkeypatch.setenv("PATH", str(folder))
    with refusing() as url, pytest.raises(InputError) as error:
        fetch(folder.parent, folder, url, "apt:some-package")
    heading, _, reasons = str(error.value).partition(": ")
    assert heading == "no source delivers the archives"
    first, second, third, fourth = reasons.split("; ")
    assert first.endswith(": images.gz: cannot be read: No such file or directory")
    assert second.endswith("folder: labels.gz: cannot be read: No such file or directory")
    assert f"{url}: labels.gz" in third and "Connection refused" in third
    assert fourth == "apt:some-package: no apt here"


@pytest.mark.parametrize(
    "source",
    ["none", "", "ftp://x/", "file:///etc", "http://", "http://[/", "apt:", "apt:a b", "apt:../a"],
)
def test_what_is_no_folder_url_or_package_is_refused_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    url, paths = server
    message = f"expected a folder, the URL of one, or apt:PACKAGE, found {re.escape(source)}$"
    with pytest.raises(InputError, match=rf"^params\.yaml: download\.sources: {message}"):
        fetch(url, source)
    if source:  # an empty variable is as none
        monkeypatch.setenv("FASHION_MNIST_MIRROR", source)
        with pytest.raises(InputError, match=f"^FASHION_MNIST_MIRROR: {message}"):
            fetch(url)
    assert not paths


@pytest.mark.slow
def test_a_package_delivers_the_true_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("apt-get"):
        pytest.skip("no apt here")
    monkeypatch.undo()  # the proxies
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    before = {p: p.stat().st_mtime_ns for p in Path("/var/lib/apt").rglob("*")}
    chosen = settings("apt:dataset-fashion-mnist")
    try:
        contents = download.fetch(chosen, "")  # which raises for other contents than the true ones
    except InputError as error:
        if re.search("resolve|connect|fetch|not done after|locate package", str(error)):
            pytest.skip(f"apt reaches no repository: {error}")
        raise
    assert contents.keys() == chosen.archives.keys()
    assert {p: p.stat().st_mtime_ns for p in Path("/var/lib/apt").rglob("*")} == before
