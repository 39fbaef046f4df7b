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
from lab.files import InputError
from tests.inputs import given_sources_only, page, refusing, serving

NAMES = ["images.gz", "labels.gz"]
TRUE = {"images.gz": bytes(range(256)) * 300, "labels.gz": b"\x01\x02" * 50}


@pytest.fixture(autouse=True)
def _small_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    given_sources_only(monkeypatch)
    sizes = {name: (len(c), hashlib.sha256(c).hexdigest()) for name, c in TRUE.items()}
    monkeypatch.setattr(download, "CONTENTS", sizes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with both archives."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, contents in TRUE.items():
        (folder / name).write_bytes(gzip.compress(contents))
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A server with both archives: its address, and the paths that were requested."""
    with serving(lambda request: page((folder / request.path[1:]).read_bytes())) as found:
        yield found


def test_a_folder_and_a_url_deliver(folder: Path, server: tuple[str, list[str]]) -> None:
    url, paths = server
    assert download.fetch(NAMES, [str(folder)]) == TRUE and not paths
    assert download.fetch(NAMES, [url]) == TRUE
    assert paths == ["/images.gz", "/labels.gz"]


def test_the_users_mirror_comes_first(
    folder: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, paths = server
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(folder))
    assert download.fetch(NAMES, [url]) == TRUE
    assert not paths


def test_an_archive_is_not_requested_twice(folder: Path, server: tuple[str, list[str]]) -> None:
    url, paths = server
    half = folder.parent / "half"
    half.mkdir()
    shutil.copy(folder / "images.gz", half)
    assert download.fetch(NAMES, [str(half), url]) == TRUE
    assert paths == ["/labels.gz"]


def test_when_all_fail_each_source_is_named_with_its_reason(folder: Path) -> None:
    (folder / "labels.gz").unlink()
    with refusing() as url, pytest.raises(InputError) as error:
        download.fetch(NAMES, [f"{folder}/none", str(folder), url])
    heading, _, reasons = str(error.value).partition(": ")
    assert heading == "no source delivers Fashion-MNIST"
    first, second, third, debian = reasons.split("; ")
    assert "none: images.gz: No such file" in first
    assert "folder: labels.gz: No such file" in second
    assert f"{url}: labels.gz" in third and "Connection refused" in third
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
        contents = download.fetch(names, [])  # which raises for other contents than the true ones
    except InputError as error:
        if re.search("resolve|connect|fetch|not done after|locate package", str(error)):
            pytest.skip(f"apt reaches no repository: {error}")
        raise
    assert {name: len(c) for name, c in contents.items()} == {
        "train-labels-idx1-ubyte.gz": 60_008,
        "t10k-labels-idx1-ubyte.gz": 10_008,
    }
    assert {p: p.stat().st_mtime_ns for p in Path("/var/lib/apt").rglob("*")} == before
