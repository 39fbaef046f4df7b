"""Faulty archives and servers: the next source is used, or one error and nothing in data/.

The archives are those of Fashion-MNIST, mostly of the labels, as they are small.
"""

import bz2
import gzip
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from torchvision.datasets import FashionMNIST

from benchmarks.clones import ROOT
from lab import download, integrity, repository
from stages import download_fashion_mnist
from tests.conftest import Program
from tests.inputs import SPECIAL_FILES, Request, given_sources_only, page, refusing, serving

TRAIN_IMAGES, TRAIN, TEST_IMAGES, TEST = (name for name, _ in FashionMNIST.resources)
DATA = Path("data/fashion_mnist")
HELD = "refused in one line; the next source delivers the true contents"
NOTHING = "one line, exit code 1, no folder data/"
CONTROL = "the true archives are accepted"
DAMAGED, OTHER = "is damaged", "holds something else"
Contents = dict[str, bytes]  # by name of the archive
Damage = Callable[[bytes], bytes]
Reason = Callable[..., str]
Times = Callable[[int], None]
fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "5. Archives")


@pytest.fixture(autouse=True)
def _given_sources_only(monkeypatch: pytest.MonkeyPatch) -> None:
    given_sources_only(monkeypatch)


@pytest.fixture(scope="module")
def archives(mirror: Path) -> Contents:
    """The four true archives."""
    return {name: (mirror / name).read_bytes() for name in download.CONTENTS}


@pytest.fixture
def bad(mirror: Path, tmp_path: Path) -> Path:
    """A folder with links to the true archives, to be replaced."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in download.CONTENTS:
        (folder / name).symlink_to(mirror / name)
    return folder


def put(path: Path, contents: bytes) -> None:
    """Write a file in place of the link, and not through it."""
    path.unlink()
    path.write_bytes(contents)


@pytest.fixture
def reason(archives: Contents, mirror: Path, capsys: pytest.CaptureFixture[str]) -> Reason:
    """A function: why the next source delivered an archive, or "" if this source did."""

    def why(place: Path | str, name: str = TEST) -> str:
        contents = download.fetch([name], [str(place), str(mirror)])
        assert contents == {name: gzip.decompress(archives[name])}
        if not (line := capsys.readouterr().err):
            return ""
        start = f"{place}: {name}"
        assert re.fullmatch(f"{re.escape(start)}.{{1,1000}}\n", line) and line[:-1].isprintable()
        return line[len(start) : -1]

    return why


@pytest.fixture
def stage(in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reason:
    """A function that runs the stage with one source, which must fail, and returns its error."""
    folder = tmp_path / "stage"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def error(place: str | Path) -> str:
        monkeypatch.setenv("FASHION_MNIST_MIRROR", str(place))
        done = in_process(download_fashion_mnist)
        assert done.returncode == 1 and not done.stdout and not Path("data").exists()
        first, debian, error = done.stderr.splitlines()
        assert first.startswith(f"{place}: ") and debian.startswith("Debian's package")
        assert error.startswith(f"error: no source delivers Fashion-MNIST: {place}: ")
        return error

    return error


@fault("an archive that ends too early", HELD, CONTROL)
def test_truncated_archives(
    archives: Contents, bad: Path, reason: Reason, run_all: bool, times: Times
) -> None:
    positions = range(len(archives[TEST]))
    drawn = random.Random(1).sample(positions[10:-10], 1000 if run_all else 20)
    for end in (ends := [*positions[:10], *positions[-10:], *drawn]):
        put(bad / TEST, archives[TEST][:end])
        assert (DAMAGED if end else OTHER) in reason(bad), end
    times(len(ends))


@fault(
    "an archive with one bit flipped",
    f"{HELD}; or gzip does not use the bit, and the contents are true", CONTROL,
)  # fmt: skip
def test_flipped_bits(
    archives: Contents, bad: Path, reason: Reason, run_all: bool, times: Times
) -> None:
    bits = range(8 * len(archives[TEST]))
    drawn = random.Random(2).sample(bits, 5000 if run_all else 60)
    accepted = 0
    for bit in (flips := [*bits[:80], *bits[-64:], *drawn]):
        damaged = bytearray(archives[TEST])
        damaged[bit // 8] ^= 1 << bit % 8
        put(bad / TEST, bytes(damaged))
        accepted += not reason(bad)
    # gzip does not use the time, the system and the name in the header, and few bits elsewhere.
    assert accepted < 60 + len(flips) // 50
    times(len(flips))


def with_sizes(*sizes: int) -> Damage:
    """Another IDX header, which claims these sizes, in an archive without a fault."""
    header = b"".join(size.to_bytes(4, "big") for size in sizes)
    return changed(lambda contents: contents[:4] + header + contents[4 + len(header) :])


def changed(change: Damage) -> Damage:
    """Other contents in an archive without a fault."""
    return lambda archive: gzip.compress(change(gzip.decompress(archive)), 1)


def bomb(_: bytes) -> bytes:
    """Two megabytes that are two gigabytes when decompressed."""
    return gzip.compress(bytes(1 << 24)) * 128


ALTERED: dict[str, tuple[Damage, str]] = {
    "empty": (lambda a: b"", OTHER),
    "zeros": (lambda a: bytes(len(a)), DAMAGED),
    "noise": (lambda a: random.Random(3).randbytes(len(a)), DAMAGED),
    "a web page": (lambda a: b"<!DOCTYPE html><title>Log in</title>", "is damaged: Not a gzipped"),
    "a pointer of git": (lambda a: b"version https://git-lfs.github.com/spec/v1\n", DAMAGED),
    "bzip2": (lambda a: bz2.compress(gzip.decompress(a)), "is damaged: Not a gzipped"),
    "zlib": (lambda a: zlib.compress(gzip.decompress(a)), "is damaged: Not a gzipped"),
    "not compressed": (gzip.decompress, "is damaged: Not a gzipped"),
    "compressed twice": (gzip.compress, OTHER),
    "no checksum": (lambda a: a[:-8], DAMAGED),
    "wrong checksum": (lambda a: a[:-8] + b"\1\2\3\4" + a[-4:], "is damaged: CRC check failed"),
    "wrong length": (lambda a: a[:-4] + b"\1\2\3\4", "is damaged: Incorrect length"),
    "a byte more": (lambda a: a + b"x", "is damaged: Not a gzipped"),
    "a page after it": (lambda a: a + b"<html></html>" * 1000, "is damaged: Not a gzipped"),
    "a second member": (lambda a: a + gzip.compress(b"\0"), OTHER),
    "itself again": (lambda a: a + a, OTHER),
    "a member before": (lambda a: gzip.compress(b"\0") + a, OTHER),
}
BOMBS = {"a bomb": (bomb, OTHER), "a bomb after it": (lambda a: a + bomb(a), OTHER)}
OTHER_CONTENTS: dict[str, tuple[Damage, str]] = {
    "no images": (with_sizes(0), OTHER),
    "2³¹ images": (with_sizes(2**31), OTHER),
    "2³² - 1 images": (with_sizes(2**32 - 1), OTHER),
    "one more image": (with_sizes(60_001), OTHER),
    "of another type": (changed(lambda c: b"\0\0\x0d" + c[3:]), OTHER),
    "two labels swapped": (changed(lambda c: c[:8] + c[9:7:-1] + c[10:]), OTHER),
    "labels in reverse": (changed(lambda c: c[:8] + c[:7:-1]), OTHER),
    "a label of no class": (changed(lambda c: c[:8] + b"\x0a" + c[9:]), OTHER),
    "a label too few": (changed(lambda c: c[:-1]), OTHER),
    "a label too many": (changed(lambda c: c + b"\0"), OTHER),
}
TABLES = {
    "that is empty, of another format, with a wrong checksum or bytes added": ALTERED,
    "of gigabytes when decompressed": BOMBS,
    "that gzip accepts, with a wrong IDX header or other labels": OTHER_CONTENTS,
}


@fault("an archive {what}", HELD, CONTROL)
@pytest.mark.parametrize("what", TABLES)
def test_altered_archives(
    archives: Contents, bad: Path, reason: Reason, times: Times, what: str
) -> None:
    for case, (damage, expected) in TABLES[what].items():
        for name in (TRAIN, TEST):
            put(bad / name, damaged := damage(archives[name]))
            assert expected in reason(bad, name), case
            assert TABLES[what] is not OTHER_CONTENTS or gzip.decompress(damaged)
    times(2 * len(TABLES[what]))


STAGE: dict[str, list[tuple[str, Damage, str]]] = {
    "a damaged archive": [
        (TEST, *(ALTERED | OTHER_CONTENTS)[case])  # the last of the four
        for case in ("a web page", "wrong checksum", "a second member", "2³¹ images")
    ],
    "damaged training images": [
        (TRAIN_IMAGES, lambda a: a[: len(a) // 2], DAMAGED),
        (TRAIN_IMAGES, lambda a: a[:-1000] + bytes([a[-1000] ^ 1]) + a[-999:], OTHER),
        (TRAIN_IMAGES, with_sizes(2**31, 28, 28), OTHER),
        (TRAIN_IMAGES, with_sizes(28, 60_000, 28), OTHER),
    ],
}


@fault("the stage, with {what} in its only source", NOTHING, CONTROL)
@pytest.mark.parametrize("what", STAGE)
def test_the_stage_writes_nothing_of_a_damaged_archive(
    archives: Contents, bad: Path, stage: Reason, times: Times, what: str
) -> None:
    for name, damage, expected in STAGE[what]:
        put(bad / name, damage(archives[name]))
        assert f"{bad}: {name} {expected}" in stage(bad)
    times(len(STAGE[what]))


@fault("archives swapped: training and test, images and labels", NOTHING, "gzip accepts them")
@pytest.mark.parametrize(
    ("one", "other"), [(TRAIN, TEST), (TEST_IMAGES, TEST), (TRAIN_IMAGES, TEST_IMAGES)]
)
def test_swapped_archives(
    archives: Contents, bad: Path, reason: Reason, stage: Reason, one: str, other: str
) -> None:
    put(bad / one, archives[other])
    put(bad / other, archives[one])
    assert OTHER in reason(bad, one) and OTHER in reason(bad, other) and OTHER in stage(bad)


@fault("no archive, or a folder, link, socket or pipe in its place", HELD, CONTROL)
@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_special_files(bad: Path, reason: Reason, stage: Reason, kind: str) -> None:
    make, expected = SPECIAL_FILES[kind]
    (bad / TRAIN_IMAGES).unlink()
    make(bad / TRAIN_IMAGES)
    assert re.match(f": .*({expected})", reason(bad, TRAIN_IMAGES))
    assert re.search(expected, stage(bad))


@fault("no folder where the only source should be", NOTHING, CONTROL)
def test_a_mirror_that_is_no_folder(bad: Path, stage: Reason, times: Times) -> None:
    places = ["none", f"bad/{TEST}", "x" * 300]
    for place in places:
        expected = "No such file|Not a directory|name too long"
        assert re.search(expected, stage(bad.parent / place))
    times(len(places))


@fault(
    "the stage, with two sources damaged in different archives and a third without a fault",
    "the outputs are those of dvc.lock", CONTROL,
)  # fmt: skip
def test_the_stage_goes_on_to_the_next_source(
    mirror: Path, bad: Path, tmp_path: Path, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recorded = integrity.outputs()[DATA]
    other = shutil.copytree(bad, tmp_path / "other", symlinks=True)
    put(bad / TEST_IMAGES, b"")
    put(other / TEST, b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(bad))
    for sources in ([str(other), str(mirror)], [str(mirror)]):
        monkeypatch.setattr(FashionMNIST, "mirrors", sources)
        done = in_process(download_fashion_mnist)
        assert done.returncode == 0 and len(done.stderr.splitlines()) == len(sources)
        assert integrity.md5(DATA) == recorded


UNDER_A_LIMIT = """
import gzip, resource, sys
from pathlib import Path
from lab import download
name, good, *bad = sys.argv[1:]
download.MIRRORS = ()
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
for folder in bad:
    download.fetch([name], [folder, good])
for folder in (bad[0], bad[-1]):
    try:
        gzip.decompress(Path(folder, name).read_bytes())
    except MemoryError:
        print("out of memory")
"""


@fault(
    "in half a gigabyte of memory, 16 GB in an archive, a header that claims 2³¹ images,"
    " a file of 1 TB in place of an archive",
    HELD, "gzip.decompress of the first and of the last is out of memory",
)  # fmt: skip
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_nothing_fills_the_memory(
    mirror: Path, archives: Contents, tmp_path: Path, times: Times
) -> None:
    true, gigabytes = archives[TEST], bomb(b"") * 8
    headers = [with_sizes(size)(true) for size in (2**31, 2**32 - 1)]
    folders = [tmp_path / str(i) for i in range(5)]
    for folder, contents in zip(folders, [gigabytes, true + gigabytes, *headers, b""], strict=True):
        folder.mkdir()
        (folder / TEST).write_bytes(contents)
    os.truncate(folders[-1] / TEST, 1 << 40)  # a hole, which takes no room on the disk
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, TEST, mirror, *folders],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=repository.environment() | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "out of memory\n" * 2), done.stderr[-1000:]
    *lines, last = done.stderr.splitlines()
    assert len(lines) == 4 and all(f"{TEST} {OTHER}" in line for line in lines)
    assert last.endswith(f"{TEST} is larger than any archive of Fashion-MNIST")
    times(len(folders))


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: %d\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"
LOGIN = b"<html>Please log in to the wireless network</html>"
STATUS = (403, 404, 429, 500, 503)
Answers = dict[str, tuple[bytes, str]]


def redirect(address: str) -> bytes:
    return page(b"", 302, f"Location: {address}")


@pytest.fixture(scope="module")
def answers(archives: Contents, mirror: Path) -> Iterator[Answers]:
    """What faulty servers answer when an archive is requested, and why it is refused."""
    half, size = archives[TEST][:2500], len(archives[TEST])
    errors = {f"a page with status {n}": (page(LOGIN, n), f"status {n}") for n in STATUS}
    with refusing() as closed:
        yield errors | {
            "a web page with status 200": (page(LOGIN), "is damaged: Not a gzipped file"),
            "nothing with status 200": (page(b""), OTHER),
            "nothing with status 204": (page(b"", 204), OTHER),
            "part of it": (page(half, 206), DAMAGED),
            "stalls before it answers": (b"", "timed out"),
            "stalls within the header": (OK + b"Content-Le", "timed out"),
            "stalls within the archive": (LENGTH % size + half, "timed out"),
            "drops half-way": (LENGTH % size + half, "bytes read, .* more expected"),
            "drops half-way in a chunk": (CHUNKED % size + half, "[Ii]ncomplete"),
            "drops half-way, unannounced": (OK + b"\r\n" + half, DAMAGED),
            "hangs up": (b"", "onnection|closed|respon"),
            "speaks something else": (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
            "sends noise": (bytes(range(32)) * 10, ": \N{REPLACEMENT CHARACTER}+$"),
            "sends what a terminal obeys": (b"\x1b[2J\x1b]0;title\x07\r\n", "title"),
            "sends headers without end": (OK + b"A: b\r\n" * 10_000, "headers"),
            "does not end": (OK + b"\r\n" + bytes(2 * download.LARGEST), "the answer does not end"),
            "redirects to itself": (redirect(TEST), "redirects without end"),
            "redirects to a page": (redirect(f"data:text/html,{LOGIN.decode()}"), "adapter"),
            "redirects to a file": (redirect(f"file://{mirror}/{TEST}"), "adapter"),
            "redirects to a closed port": (redirect(closed), "refused"),
            "redirects to no port": (redirect("http://127.0.0.1:99999/"), "[Pp]ort"),
            "redirects to no host": (redirect("http://a..b/"), "label empty"),
            "redirects nowhere": (page(b"", 302), OTHER),
            "redirects to no address": (redirect("http://[/"), "Invalid IPv6 URL"),
            "redirects to no text": (redirect("@").replace(b"@", b"\xff\xfe"), "can't decode"),
        }


@fault(
    "a server that sends pages or errors, stalls, drops, redirects, or does not end", HELD, CONTROL
)
def test_faulty_servers(
    answers: Answers, reason: Reason, monkeypatch: pytest.MonkeyPatch, times: Times
) -> None:
    def answer(request: Request) -> bytes:
        case = unquote(request.path.split("/")[1])
        request.wfile.write(answers[case][0])
        if case.startswith("stalls"):
            request.connection.recv(1)  # until the client leaves
        return b""

    with serving(answer) as (url, _):
        for case, (_, expected) in answers.items():
            wait = 0.3 if case.startswith("stalls") else 100
            monkeypatch.setattr(download, "TIMEOUT", (100, wait))
            why = reason(f"{url}{quote(case)}")
            assert re.search(expected, why), f"{case}: {why}"
    times(len(answers))


@fault("a server with an odd header, whose archive is true", "the true contents are accepted")
def test_odd_headers(archives: Contents, reason: Reason, times: Times) -> None:
    lengths = ["-5", "many", "", "{size}\r\nContent-Length: {size}"]
    headers = [f"Content-Length: {length}" for length in lengths]
    headers += ["X: no length", "Content-Encoding: gzip", "Content-Type: text/html; charset=utf-8"]
    for header in headers:
        answer = page(archives[TEST], header=header)
        with serving(partial(lambda answer, _: answer, answer)) as (url, paths):
            assert reason(url) == "" and len(paths) == 1, header
    times(len(headers))


@fault("a server that sends a byte at a time", f"left at the deadline; {HELD}", CONTROL)
def test_a_slow_server_is_left_at_the_deadline(
    archives: Contents, reason: Reason, monkeypatch: pytest.MonkeyPatch, times: Times
) -> None:
    def answer(request: Request) -> bytes:
        length = len(archives[TEST])
        request.wfile.write(LENGTH % length if "length" in request.path else OK + b"\r\n")
        for byte in archives[TEST]:  # takes a minute: then the archive would be accepted
            request.wfile.write(bytes([byte]))
            time.sleep(0.01)
        return b""

    monkeypatch.setattr(download, "DEADLINE", 0.3)
    with serving(answer) as (url, _):
        for path in ("length", "unannounced"):
            assert reason(url + path) == ": not complete after 0.3 seconds"
    times(2)


@fault("the stage, with a server that fails at the last of the four archives", NOTHING, CONTROL)
def test_the_stage_writes_nothing_of_a_faulty_server(
    archives: Contents, answers: Answers, stage: Reason, times: Times
) -> None:
    for case in (cases := ["a web page with status 200", "drops half-way", "does not end"]):
        served = {f"/{name}": page(archive) for name, archive in archives.items()}
        served[f"/{TEST}"], expected = answers[case]
        with serving(partial(lambda served, request: served[request.path], served)) as (url, paths):
            assert re.search(expected, stage(url)) and len(paths) == 4, case
    times(len(cases))
