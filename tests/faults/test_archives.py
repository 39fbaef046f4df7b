"""Archives come from the first source that has them: faulty ones are refused in one line.

The archives are those of Fashion-MNIST, mostly of the labels, as they are small.
"""

import gzip
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from torchvision.datasets import FashionMNIST

from lab import download
from lab.common import lockfile
from lab.common.files import InputError
from stages import prepare
from tests.conftest import Program
from tests.inputs import SPECIAL_FILES, Request, edited, page, refusing, serving, settings
from tracking.repository import ROOT

TRAIN_IMAGES, TRAIN, TEST_IMAGES, TEST = (name for name, _ in FashionMNIST.resources)
DATA = Path("data/fashion_mnist")
HELD = "refused in one line; the next source delivers the true contents"
NOTHING = "one line, exit code 1, no folder data/"
CONTROL = "the true archives are accepted"
DAMAGED, OTHER, ACCEPTED = "is damaged", "holds something else", "^$"
Contents = dict[str, bytes]  # by name of the archive
Damage = Callable[[bytes], bytes]
Reason = Callable[..., str]
Times = Callable[[int], None]
fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "5. Archives")


@pytest.fixture(autouse=True)
def _given_sources_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def archives(mirror: Path) -> Contents:
    """The four true archives."""
    return {name: (mirror / name).read_bytes() for name, _ in FashionMNIST.resources}


@pytest.fixture
def bad(mirror: Path, tmp_path: Path) -> Path:
    """A folder with links to the true archives, to be replaced."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, _ in FashionMNIST.resources:
        (folder / name).symlink_to(mirror / name)
    return folder


def put(path: Path, contents: bytes) -> None:
    """Write a file in place of the link, and not through it."""
    path.unlink()
    path.write_bytes(contents)


@pytest.fixture
def reason(archives: Contents, mirror: Path, capsys: pytest.CaptureFixture[str]) -> Reason:
    """A function: why the next source delivered an archive, or "" if this source did."""

    def why(place: Path | str, name: str = TEST, **changes: object) -> str:
        wanted = {name: settings().archives[name]}
        chosen = settings(str(place), str(mirror), archives=wanted, **changes)
        assert download.fetch(chosen, "") == {name: gzip.decompress(archives[name])}
        if not (line := capsys.readouterr().err):
            return ""
        start = f"{place}: {name}"
        assert re.fullmatch(f"{re.escape(start)}.{{1,1000}}\n", line) and line[:-1].isprintable()
        return line[len(start) : -1]

    return why


def write_params(*sources: Path | str) -> None:
    """A params.yaml in the current folder, with these sources."""
    text = edited(("download", "sources"), {"sources": [*map(str, sources)]})
    Path("params.yaml").write_text(text)


@pytest.fixture
def stage(in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reason:
    """A function that runs the stage with one source, which must fail, and returns its error."""
    folder = tmp_path / "stage"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def error(place: str | Path) -> str:
        write_params(place)
        done = in_process(prepare, "fashion_mnist")
        assert done.returncode == 1 and not done.stdout and not Path("data").exists()
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return error


@fault(
    "an archive that ends too early, or with one bit flipped",
    f"{HELD}; or gzip does not use the bit, and the contents are true",
    CONTROL,
)
def test_truncated_archives_and_flipped_bits(
    archives: Contents, bad: Path, reason: Reason, run_all: bool, times: Times
) -> None:
    archive, draw, accepted = archives[TEST], random.Random(1), 0
    for end in (ends := [*range(10), *draw.sample(range(len(archive)), 1000 if run_all else 20)]):
        put(bad / TEST, archive[:end])
        assert (DAMAGED if end else OTHER) in reason(bad), end
    bits = range(8 * len(archive))
    for bit in (flips := [*bits[:80], *bits[-64:], *draw.sample(bits, 5000 if run_all else 60)]):
        damaged = bytearray(archive)
        damaged[bit // 8] ^= 1 << bit % 8
        put(bad / TEST, bytes(damaged))
        accepted += not reason(bad)
    # gzip does not use the time, the system and the name in the header, and few bits elsewhere.
    assert accepted < 60 + len(flips) // 50
    times(len(ends) + len(flips))


def changed(change: Damage) -> Damage:
    """Other contents in an archive without a fault."""
    return lambda archive: gzip.compress(change(gzip.decompress(archive)), 1)


ALTERED: dict[str, tuple[Damage, str]] = {
    "empty": (lambda a: b"", OTHER),
    "a web page": (lambda a: b"<!DOCTYPE html><title>Log in</title>", "is damaged: Not a gzipped"),
    "not compressed": (gzip.decompress, "is damaged: Not a gzipped"),
    "compressed twice": (gzip.compress, OTHER),
    "wrong checksum": (lambda a: a[:-8] + b"\1\2\3\4" + a[-4:], "is damaged: CRC check failed"),
    "wrong length": (lambda a: a[:-4] + b"\1\2\3\4", "is damaged: Incorrect length"),
    "a byte more": (lambda a: a + b"x", "is damaged: Not a gzipped"),
    "a second member": (lambda a: a + gzip.compress(b"\0"), OTHER),
    "16 gigabytes": (lambda a: gzip.compress(bytes(1 << 24)) * 1024, OTHER),
    "2³¹ images": (changed(lambda c: c[:4] + (2**31).to_bytes(4, "big") + c[8:]), OTHER),
    "two labels swapped": (changed(lambda c: c[:8] + c[9:7:-1] + c[10:]), OTHER),
    "a label too many": (changed(lambda c: c + b"\0"), OTHER),
}


@fault(
    "an archive that is empty, of another format, with a wrong checksum or bytes added, of"
    " gigabytes when decompressed, with a wrong IDX header or other labels; a file of 1 TB in place"
    " of an archive; all in half a gigabyte of memory",
    HELD,
    f"{CONTROL}; gzip.decompress of the gigabytes and of the terabyte is out of memory",
)
@pytest.mark.usefixtures("little_memory")
def test_altered_archives(archives: Contents, bad: Path, reason: Reason, times: Times) -> None:
    for case, (damage, expected) in ALTERED.items():
        for name in (TRAIN, TEST):
            put(bad / name, damage(archives[name]))
            assert expected in reason(bad, name), case
    put(bad / TRAIN, ALTERED["16 gigabytes"][0](b""))
    os.truncate(bad / TEST, 1 << 40)  # a hole, which takes no room on the disk
    assert reason(bad) == ": expected at most 67,108,864 bytes"
    for name in (TRAIN, TEST):
        with pytest.raises(MemoryError):
            gzip.decompress((bad / name).read_bytes())
    times(2 * len(ALTERED) + 1)


@fault("no archive, or a folder, link, socket or pipe in its place", HELD, CONTROL)
@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_special_files(bad: Path, reason: Reason, stage: Reason, kind: str) -> None:
    make, expected = SPECIAL_FILES[kind]
    (bad / TRAIN_IMAGES).unlink()
    make(bad / TRAIN_IMAGES)
    assert re.match(f": .*({expected})", reason(bad, TRAIN_IMAGES))
    assert re.search(expected, stage(bad))


@fault(
    "the stage, with two sources damaged in different archives and a third without a fault",
    "the outputs are those of dvc.lock",
    CONTROL,
)
def test_the_stage_goes_on_to_the_next_source(
    mirror: Path, bad: Path, tmp_path: Path, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recorded = lockfile.outputs()[DATA]
    other = shutil.copytree(bad, tmp_path / "other", symlinks=True)
    put(bad / TEST_IMAGES, b"")
    put(other / TEST, b"")
    monkeypatch.chdir(tmp_path)
    for damaged in ([bad, other], []):
        write_params(*damaged, mirror)
        done = in_process(prepare, "fashion_mnist")
        assert done.returncode == 0 and len(done.stderr.splitlines()) == len(damaged)
        assert lockfile.md5(DATA) == recorded


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: %d\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"
LOGIN = b"<html>Please log in to the wireless network</html>"
Answers = dict[str, tuple[bytes, str]]


def redirect(address: str) -> bytes:
    return page(b"", 302, f"Location: {address}")


@pytest.fixture(scope="module")
def answers(archives: Contents, mirror: Path) -> Iterator[Answers]:
    """What faulty servers answer when an archive is requested, and why it is refused."""
    half, size = archives[TEST][:2500], len(archives[TEST])
    with refusing() as closed:
        yield {
            "a page with status 404": (page(LOGIN, 404), "404 .* Error"),
            "a page with status 503": (page(LOGIN, 503), "503 .* Error"),
            "a web page with status 200": (page(LOGIN), "is damaged: Not a gzipped file"),
            "nothing with status 200": (page(b""), OTHER),
            "part of it": (page(half, 206), DAMAGED),
            "stalls before it answers": (b"", "timed out"),
            "stalls within the archive": (LENGTH % size + half, "timed out"),
            "a byte at a time": (LENGTH % size, "not complete after 0.3 seconds"),
            "a byte at a time, unannounced": (OK + b"\r\n", "not complete after 0.3 seconds"),
            "drops half-way": (LENGTH % size + half, "bytes read, .* more expected"),
            "drops half-way in a chunk": (CHUNKED % size + half, "[Ii]ncomplete"),
            "drops half-way, unannounced": (OK + b"\r\n" + half, DAMAGED),
            "hangs up": (b"", "onnection|closed|respon"),
            "speaks something else": (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
            "sends what a terminal obeys": (b"\x1b[2J\x1b]0;title\x07\r\n", "title"),
            "sends headers without end": (OK + b"A: b\r\n" * 10_000, "headers"),
            "does not end": (OK + b"\r\n" + bytes(2 * download.LARGEST), "the answer does not end"),
            "redirects to itself": (redirect(TEST), "Exceeded 30 redirects"),
            "redirects to a file": (redirect(f"file://{mirror}/{TEST}"), "adapter"),
            "redirects to a closed port": (redirect(closed), "refused"),
            "redirects nowhere": (page(b"", 302), OTHER),
            "redirects to no address": (redirect("http://[/"), "Invalid IPv6 URL"),
            "no length": (page(archives[TEST], header="X: y"), ACCEPTED),
            "a length in words": (page(archives[TEST], header="Content-Length: many"), ACCEPTED),
            "gzip as encoding": (page(archives[TEST], header="Content-Encoding: gzip"), ACCEPTED),
            "redirects to no text": (redirect("@").replace(b"@", b"\xff\xfe"), "can't decode"),
        }


@fault(
    "a server that sends pages, errors or a byte at a time, stalls, drops, redirects, does not end,"
    " or has an odd header",
    f"{HELD}; a slow one is left at the deadline",
    "true archives are accepted, also after an odd header",
)
def test_faulty_servers(archives: Contents, answers: Answers, reason: Reason, times: Times) -> None:
    def answer(request: Request) -> bytes:
        case = unquote(request.path.split("/")[1])
        request.wfile.write(answers[case][0])
        if case.startswith("stalls"):
            request.connection.recv(1)  # until the client leaves
        elif case.startswith("a byte at a time"):
            for byte in archives[TEST]:  # takes a minute: then the archive would be accepted
                request.wfile.write(bytes([byte]))
                time.sleep(0.01)
        return b""

    with serving(answer) as (url, _):
        for case, (_, expected) in answers.items():
            wait = 0.3 if case.startswith("stalls") else 100
            deadline = 0.3 if case.startswith("a byte at a time") else 100
            address = f"{url}/{quote(case)}"
            why = reason(address, connect_timeout=100, read_timeout=wait, deadline=deadline)
            assert re.search(expected, why), f"{case}: {why}"
    times(len(answers))


@fault(
    "the stage, with an only source, a folder or a server, in which an archive is damaged, has the"
    " contents of another, or does not arrive",
    NOTHING,
    "gzip accepts the contents of another",
)
def test_the_stage_writes_nothing_of_a_faulty_source(
    archives: Contents, answers: Answers, bad: Path, stage: Reason, times: Times
) -> None:
    damaged = {
        TEST: (ALTERED["wrong checksum"][0](archives[TEST]), DAMAGED),  # the last of the four
        TRAIN: (archives[TRAIN_IMAGES], OTHER),
        TEST_IMAGES: (archives[TRAIN_IMAGES], OTHER),
        TRAIN_IMAGES: (archives[TRAIN_IMAGES][:-9], DAMAGED),
    }
    for name, (contents, expected) in damaged.items():
        put(bad / name, contents)
        assert f"{bad}: {name} {expected}" in stage(bad)
        put(bad / name, archives[name])
    served = {f"/{name}": page(archive) for name, archive in archives.items()}
    with serving(lambda request: served[request.path]) as (url, _):
        for case in (cases := ["a web page with status 200", "drops half-way", "does not end"]):
            served[f"/{TEST}"], expected = answers[case]
            assert re.search(expected, stage(url)), case
    times(len(damaged) + len(cases))


def test_the_first_source_that_has_an_archive_delivers_it(
    archives: Contents, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {name: settings().archives[name] for name in (TRAIN, TEST)}
    with serving(lambda request: page(archives[request.path[1:]])) as (url, paths):

        def fetch(*sources: str | Path) -> list[str]:
            """What the server is asked for."""
            paths.clear()
            chosen = settings(*map(str, sources), archives=wanted)
            contents = download.fetch(chosen, "FASHION_MNIST_MIRROR")
            assert contents == {name: gzip.decompress(archives[name]) for name in wanted}
            return list(paths)

        assert fetch(mirror, url) == [] and fetch(url, mirror) == [f"/{TRAIN}", f"/{TEST}"]
        shutil.copy(mirror / TRAIN, tmp_path)
        assert fetch(tmp_path, url) == [f"/{TEST}"]
        monkeypatch.setenv("FASHION_MNIST_MIRROR", str(mirror))  # the user's own is the first
        assert fetch(url) == []


def test_when_all_fail_the_message_names_each_source_and_its_reason(
    bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bad / TEST).unlink()
    monkeypatch.setenv("PATH", str(bad))
    with refusing() as url, pytest.raises(InputError) as error:
        download.fetch(settings(str(tmp_path), str(bad), url, "apt:some-package"), "")
    heading, _, reasons = str(error.value).partition(": ")
    assert heading == "no source delivers the archives"
    first, second, third, fourth = reasons.split("; ")
    assert first == f"{tmp_path}: {TRAIN_IMAGES}: cannot be read: No such file or directory"
    assert second == f"{bad}: {TEST}: cannot be read: No such file or directory"
    assert f"{url}: {TEST}" in third and "Connection refused" in third
    assert fourth == "apt:some-package: no apt here"


@pytest.mark.parametrize(
    "source", ["none", "", "ftp://x/", "http://", "http://[/", "apt:", "apt:a b", "apt:../a"]
)
def test_what_is_no_folder_url_or_package_is_refused_at_once(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    message = f"expected a folder, the URL of one, or apt:PACKAGE, found {re.escape(source)}$"
    with pytest.raises(InputError, match=rf"^params\.yaml: download\.sources: {message}"):
        download.fetch(settings(str(mirror), source), "")
    if source:  # an empty variable is as none
        monkeypatch.setenv("FASHION_MNIST_MIRROR", source)
        with pytest.raises(InputError, match=f"^FASHION_MNIST_MIRROR: {message}"):
            download.fetch(settings(str(mirror)), "FASHION_MNIST_MIRROR")


@pytest.mark.slow
def test_a_package_delivers_the_true_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("apt-get"):
        pytest.skip("no apt here")
    monkeypatch.undo()  # the proxies
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
