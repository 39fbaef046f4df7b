"""Spoilt archives and servers: the next source is used, or one error and nothing in data/.

With the real archives of Fashion-MNIST. Mostly those of the labels, as they are small.
"""

import bz2
import contextlib
import gzip
import http.server
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torchvision.datasets import FashionMNIST

import stages
from benchmarks.clones import ROOT
from lab import download, integrity, repository
from lab.files import InputError
from stages import download_fashion_mnist
from tests.lab.test_download import Answer, Server, files_of, send

TRAIN_IMAGES, TRAIN, TEST_IMAGES, TEST = (name for name, _ in FashionMNIST.resources)
DATA = Path("data/fashion_mnist")
PART = "5. Archives"
HELD = "refused in one line; the next source delivers the true contents"
CONTROL = "the unspoilt archives deliver"
Tried = Callable[..., None]
Spoil = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _no_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MIRRORS", ())
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    monkeypatch.setattr(download, "TIMEOUT", (1, 1))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no apt
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def true(mirror: Path) -> dict[str, bytes]:
    """The true contents of the small archives."""
    return {name: gzip.decompress((mirror / name).read_bytes()) for name in (TRAIN, TEST)}


@pytest.fixture
def bad(mirror: Path, tmp_path: Path) -> Path:
    """A folder with links to the true archives, to be spoilt."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in download.CONTENTS:
        (folder / name).symlink_to(mirror / name)
    return folder


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Answer], Server]]:
    """A function that starts a server."""
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        def quietly(request: http.server.BaseHTTPRequestHandler) -> None:
            with contextlib.suppress(OSError):  # the client has left
                answer(request)

        servers.append(Server(quietly))
        return servers[-1]

    yield start
    with ThreadPoolExecutor(100) as pool:  # each takes half a second
        list(pool.map(lambda server: server.http.shutdown(), servers))
    for server in servers:
        server.http.server_close()


@pytest.fixture(scope="module")
def whole(serve: Callable[[Answer], Server], mirror: Path) -> str:
    """The address of a server without a fault."""
    return serve(files_of(mirror)).url


def put(path: Path, contents: bytes) -> None:
    """In place of the link, not through it."""
    path.unlink()
    path.write_bytes(contents)


def why_not(place: str, name: str) -> str:
    """Why this source alone does not deliver the archive, in one line."""
    with pytest.raises(InputError) as error:
        download.fetch([name], [place])
    heading = f"no source delivers Fashion-MNIST: {place}: {name}"
    message = str(error.value)
    assert message.startswith(heading) and message.isprintable() and len(message) < 1000
    return message.removeprefix(heading).removesuffix(f"; {download.DEBIAN}: no apt here")


def goes_on(place: str, mirror: Path, name: str, true: dict[str, bytes]) -> str:
    """Why this source does not deliver the archive, and that the next one does."""
    assert download.fetch([name], [place, str(mirror)]) == {name: true[name]}
    return why_not(place, name)


@pytest.fixture
def stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str | Path], str]]:
    """A function that runs the stage with one source, which must fail, and returns the error."""
    folder = tmp_path / "stage"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "stages/download_fashion_mnist.py")])
    before = signal.getsignal(signal.SIGTERM)

    def run(place: str | Path) -> str:
        monkeypatch.setenv("FASHION_MNIST_MIRROR", str(place))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            stages.run(download_fashion_mnist.main)
        out, err = capsys.readouterr()
        assert end.value.code == 1 and not out
        *each, error = err.splitlines()
        assert error.startswith(f"error: no source delivers Fashion-MNIST: {place}: ")
        assert len(each) == 2 and each[0].startswith(f"{place}: ")  # this source, and Debian's
        assert not Path("data").exists()
        return error

    yield run
    signal.signal(signal.SIGTERM, before)


def test_truncated_archives(
    mirror: Path, bad: Path, true: dict[str, bytes], tried: Tried, full: bool
) -> None:
    archive = (mirror / TEST).read_bytes()
    ends = sorted({*range(10), *range(len(archive) - 10, len(archive))})
    ends += sorted(random.Random(1).sample(range(10, len(archive) - 10), 1000 if full else 20))
    for end in ends:
        put(bad / TEST, archive[:end])
        why = goes_on(str(bad), mirror, TEST, true)
        assert "is damaged" in why or (end == 0 and "holds something else" in why)
    tried(PART, "an archive that ends too early", HELD, CONTROL, times=len(ends))


def test_flipped_bits(
    mirror: Path, bad: Path, true: dict[str, bytes], tried: Tried, full: bool
) -> None:
    archive = (mirror / TEST).read_bytes()
    draw = random.Random(2)
    bits = range(8 * len(archive))
    flips = [
        *range(80),
        *range(len(bits) - 64, len(bits)),
        *draw.sample(bits, 5000 if full else 60),
    ]
    refused = 0
    for bit in flips:
        spoilt = bytearray(archive)
        spoilt[bit // 8] ^= 1 << bit % 8
        put(bad / TEST, bytes(spoilt))
        try:
            assert download.fetch([TEST], [str(bad)]) == {TEST: true[TEST]}
        except InputError:
            refused += 1
            assert goes_on(str(bad), mirror, TEST, true)
    # Within the header the time, the system and the name say nothing; hardly a bit elsewhere.
    assert len(flips) - refused < 60 + len(flips) // 50
    tried(
        PART, "an archive with one bit flipped",
        f"{HELD}; or the bit is one that gzip does not use, and the contents are true",
        CONTROL, times=len(flips),
    )  # fmt: skip


def lying(*sizes: int) -> Spoil:
    """Another IDX header, which claims these sizes, well compressed."""

    def spoil(archive: bytes) -> bytes:
        contents = gzip.decompress(archive)
        claimed = b"".join((size % 2**32).to_bytes(4, "big") for size in sizes)
        return gzip.compress(contents[:4] + claimed + contents[4 + len(claimed) :], 1)

    return spoil


def with_labels(change: Callable[[bytes], bytes]) -> Spoil:
    """Other labels under the true header, well compressed."""

    def spoil(archive: bytes) -> bytes:
        contents = gzip.decompress(archive)
        return gzip.compress(contents[:8] + change(contents[8:]))

    return spoil


def deflated_only(archive: bytes) -> bytes:
    return zlib.compress(gzip.decompress(archive))


def bomb(archive: bytes) -> bytes:
    """Two megabytes that unfold to two gigabytes."""
    return gzip.compress(bytes(1 << 24)) * 128


SPOILT: dict[str, tuple[Spoil, str]] = {
    "empty": (lambda a: b"", "holds something else"),
    "zeros": (lambda a: bytes(len(a)), "is damaged"),
    "noise": (lambda a: random.Random(3).randbytes(len(a)), "is damaged"),
    "a web page": (lambda a: b"<!DOCTYPE html><title>Log in</title>", "is damaged: Not a gzipped"),
    "a pointer of git": (lambda a: b"version https://git-lfs.github.com/spec/v1\n", "is damaged"),
    "bzip2": (lambda a: bz2.compress(gzip.decompress(a)), "is damaged: Not a gzipped"),
    "zlib": (deflated_only, "is damaged: Not a gzipped"),
    "not compressed": (gzip.decompress, "is damaged: Not a gzipped"),
    "compressed twice": (gzip.compress, "holds something else"),
    "no checksum": (lambda a: a[:-8], "is damaged"),
    "wrong checksum": (lambda a: a[:-8] + b"\1\2\3\4" + a[-4:], "is damaged: CRC check failed"),
    "wrong length": (lambda a: a[:-4] + b"\1\2\3\4", "is damaged: Incorrect length"),
    "a byte more": (lambda a: a + b"x", "is damaged: Not a gzipped"),
    "a page after it": (lambda a: a + b"<html></html>" * 1000, "is damaged: Not a gzipped"),
    "a second member": (lambda a: a + gzip.compress(b"\0"), "holds something else"),
    "itself again": (lambda a: a + a, "holds something else"),
    "a member before": (lambda a: gzip.compress(b"\0") + a, "holds something else"),
    "a bomb": (bomb, "holds something else"),
    "a bomb after it": (lambda a: a + bomb(a), "holds something else"),
    "no images": (lying(0), "holds something else"),
    "2³¹ images": (lying(2**31), "holds something else"),
    "2³² - 1 images": (lying(-1), "holds something else"),
    "one more image": (lying(60_001), "holds something else"),
    "of another type": (lambda a: gzip.compress(b"\0\0\x0d" + gzip.decompress(a)[3:]), "something"),
    "two labels swapped": (with_labels(lambda n: n[1::-1] + n[2:]), "holds something else"),
    "labels in reverse": (with_labels(lambda n: n[::-1]), "holds something else"),
    "a label of no class": (with_labels(lambda n: b"\x0a" + n[1:]), "holds something else"),
    "a label too few": (with_labels(lambda n: n[:-1]), "holds something else"),
    "a label too many": (with_labels(lambda n: n + b"\0"), "holds something else"),
}
FAULT = "an archive that is empty, of another format, with a wrong checksum or bytes added"
LIES = "a gzip archive without a fault, with an IDX header that lies or other labels"
BOMBS = "an archive that unfolds to gigabytes"


def what(how: str) -> str:
    if "bomb" in how:
        return BOMBS
    return LIES if "image" in how or "label" in how or "type" in how else FAULT


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_archives(
    mirror: Path, bad: Path, true: dict[str, bytes], tried: Tried, how: str
) -> None:
    spoil, expected = SPOILT[how]
    for name in (TRAIN, TEST):
        spoilt = spoil((mirror / name).read_bytes())
        put(bad / name, spoilt)
        assert expected in goes_on(str(bad), mirror, name, true)
        if what(how) == LIES:  # nothing but the digest of the contents tells
            assert gzip.decompress(spoilt)
    tried(PART, what(how), HELD, "gzip alone takes it" if what(how) == LIES else CONTROL, times=2)


@pytest.mark.parametrize("how", ["a web page", "wrong checksum", "a second member", "2³¹ images"])
def test_the_stage_leaves_nothing_of_a_spoilt_archive(
    mirror: Path, bad: Path, stage: Callable[[Path], str], tried: Tried, how: str
) -> None:
    spoil, expected = SPOILT[how]
    put(bad / TEST, spoil((mirror / TEST).read_bytes()))  # the last of the four
    assert f"{bad}: {TEST} " in (error := stage(bad)) and expected in error
    tried(
        PART, "the stage, with a spoilt archive in its only source",
        "one line, exit code 1, no folder data/", CONTROL,
    )  # fmt: skip


SPOILT_IMAGES: dict[str, Spoil] = {
    "truncated": lambda a: a[: len(a) // 2],
    "a bit flipped": lambda a: a[:-1000] + bytes([a[-1000] ^ 1]) + a[-999:],
    "2³¹ images of 28 x 28": lying(2**31, 28, 28),
    "28 images of 60,000 x 28": lying(28, 60_000, 28),
}


@pytest.mark.parametrize("how", SPOILT_IMAGES)
def test_the_stage_leaves_nothing_of_spoilt_images(
    mirror: Path, bad: Path, stage: Callable[[Path], str], tried: Tried, how: str
) -> None:
    put(bad / TRAIN_IMAGES, SPOILT_IMAGES[how]((mirror / TRAIN_IMAGES).read_bytes()))
    assert f"{TRAIN_IMAGES} " in stage(bad)
    tried(
        PART, "the stage, with spoilt training images in its only source",
        "one line, exit code 1, no folder data/", CONTROL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"), [(TRAIN, TEST), (TEST_IMAGES, TEST), (TRAIN_IMAGES, TEST_IMAGES)]
)
def test_swapped_archives(
    mirror: Path, bad: Path, stage: Callable[[Path], str], tried: Tried, one: str, other: str
) -> None:
    put(bad / one, (mirror / other).read_bytes())
    put(bad / other, (mirror / one).read_bytes())
    for name in (one, other):
        assert why_not(str(bad), name).startswith(" holds something else")
    assert "holds something else" in stage(bad)
    tried(
        PART, "archives swapped: training and test, images and labels",
        "one line, exit code 1, no folder data/", "gzip alone takes them",
    )  # fmt: skip


def nothing(path: Path) -> None:
    pass


def as_a_socket(path: Path) -> None:
    # The whole path may be too long for a socket.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (nothing, "No such file"),
    "a folder": (Path.mkdir, "Is a directory"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "a socket": (as_a_socket, "No such device|not supported"),
    "a named pipe": (os.mkfifo, "expected a file, found a named pipe"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_in_place_of_an_archive(
    mirror: Path,
    bad: Path,
    true: dict[str, bytes],
    stage: Callable[[Path], str],
    tried: Tried,
    kind: str,
) -> None:
    make, expected = PLACES[kind]
    (bad / TRAIN).unlink()
    make(bad / TRAIN)
    assert re.match(f": .*({expected})", goes_on(str(bad), mirror, TRAIN, true))
    assert re.search(expected, stage(bad))
    tried(PART, "no archive, or a folder, link, socket or pipe in its place", HELD, CONTROL)


@pytest.mark.parametrize(
    "place", ["none", f"bad/{TEST}", "x" * 300], ids=["nothing", "a file", "a long name"]
)
def test_a_mirror_that_is_no_folder(
    bad: Path, stage: Callable[[Path], str], tried: Tried, place: str
) -> None:
    assert re.search("No such file|Not a directory|name too long", stage(bad.parent / place))
    tried(
        PART, "no folder where the only source should be",
        "one line, exit code 1, no folder data/", CONTROL,
    )  # fmt: skip


def test_what_one_source_spoils_the_next_delivers(
    mirror: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    put(bad / TEST_IMAGES, b"")
    other = tmp_path / "other"
    other.mkdir()
    (other / TEST_IMAGES).symlink_to(mirror / TEST_IMAGES)
    (other / TEST).mkdir()
    recorded = recorded_digest(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["download_fashion_mnist"])
    monkeypatch.setattr(FashionMNIST, "mirrors", [str(other), str(mirror)])
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(bad))
    download_fashion_mnist.main()
    assert integrity.md5(DATA) == recorded
    tried(
        PART, "the stage, with each of two sources spoilt in another archive and a third whole",
        "the outputs are those of dvc.lock", CONTROL,
    )  # fmt: skip


def recorded_digest(monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        return integrity.outputs()[DATA]


UNDER_A_LIMIT = """
import gzip, resource, sys
from pathlib import Path
from lab import download
name, good, *bad = sys.argv[1:]
download.MIRRORS = ()
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
for folder in bad:
    download.fetch([name], [folder, good])
try:
    gzip.decompress(Path(bad[0], name).read_bytes())
except MemoryError:
    print("control: out of memory")
"""


def within_half_a_gigabyte(mirror: Path, *bad: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, TEST, mirror, *bad],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=repository.environment() | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_no_archive_fills_the_memory(mirror: Path, tmp_path: Path, tried: Tried) -> None:
    archive = (mirror / TEST).read_bytes()
    spoilt = [bomb(b"") * 8, archive + bomb(b"") * 8, lying(2**31)(archive), lying(-1)(archive)]
    folders = [tmp_path / str(i) for i in range(len(spoilt))]
    for folder, contents in zip(folders, spoilt, strict=True):
        folder.mkdir()
        (folder / TEST).write_bytes(contents)
    done = within_half_a_gigabyte(mirror, *folders)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "control: out of memory\n"
    assert done.stderr.count("holds something else") == len(folders)
    tried(
        PART, "16 GB in an archive, and headers that claim 2³¹ images, in half a gigabyte",
        HELD, "gzip.decompress of the first is out of memory", times=len(folders),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_no_file_fills_the_memory(mirror: Path, tmp_path: Path, tried: Tried) -> None:
    with (tmp_path / TEST).open("wb") as file:
        file.truncate(1 << 40)  # a hole: takes no room on the disk
    done = within_half_a_gigabyte(mirror, tmp_path)
    assert done.returncode == 0, done.stderr[-200:]
    assert done.stdout == "control: out of memory\n" and TEST in done.stderr
    tried(PART, "a file of 1 TB in place of an archive", HELD, "read whole, it is out of memory")


def stall(before: bytes) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(before)
        time.sleep(3)

    return answer


def half(mirror: Path, announced: bytes) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        body = (mirror / request.path.rpartition("/")[2]).read_bytes()
        request.wfile.write(announced % len(body) + body[: len(body) // 2])

    return answer


def hang_up(request: http.server.BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def to(address: str, status: int = 302) -> Answer:
    return send(b"", status=status, headers={"Location": address})


def to_and_fro(request: http.server.BaseHTTPRequestHandler) -> None:
    to(request.path.rstrip("?") if "?" in request.path else f"{request.path}?")(request)


def endless(request: http.server.BaseHTTPRequestHandler) -> None:
    request.wfile.write(OK + b"\r\n")
    for _ in range(2000):
        request.wfile.write(bytes(1 << 16))


def raw(answer: bytes) -> Answer:
    def send_it(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(answer)

    return send_it


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: %d\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"
PAGE = b"<html>Please log in to the wireless network</html>"
SERVERS: dict[str, tuple[Callable[[Path], Answer], str]] = {
    "a web page with status 200": (lambda m: send(PAGE), "is damaged: Not a gzipped file"),
    "nothing with status 200": (lambda m: send(b""), "holds something else"),
    "nothing with status 204": (lambda m: send(b"", status=204), "holds something else"),
    "part of it": (lambda m: send(b"\x1f\x8b", status=206), "is damaged"),
    "a page with status 403": (lambda m: send(PAGE, status=403), "status 403"),
    "a page with status 404": (lambda m: send(PAGE, status=404), "status 404"),
    "a page with status 429": (lambda m: send(PAGE, status=429), "status 429"),
    "a page with status 500": (lambda m: send(PAGE, status=500), "status 500"),
    "a page with status 503": (lambda m: send(PAGE, status=503), "status 503"),
    "stalls before it answers": (lambda m: stall(b""), "timed out"),
    "stalls within the header": (lambda m: stall(OK + b"Content-Le"), "timed out"),
    "stalls within the archive": (lambda m: stall(LENGTH % 5000 + b"\x1f\x8b"), "timed out"),
    "drops half-way": (lambda m: half(m, LENGTH), "bytes read, .* more expected"),
    "drops half-way in a chunk": (lambda m: half(m, CHUNKED), "Incomplete|incomplete"),
    "drops half-way, unannounced": (lambda m: half(m, OK + b"X: %d\r\n\r\n"), "is damaged"),
    "hangs up": (lambda m: hang_up, "onnection|closed|respon"),
    "speaks something else": (lambda m: raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "SSH"),
    "sends headers without end": (lambda m: raw(OK + b"A: b\r\n" * 10_000), "headers"),
    "does not end": (lambda m: endless, "the answer does not end"),
    "redirects to itself": (lambda m: to_and_fro, "redirects without end"),
    "redirects to a page": (lambda m: to(f"data:text/html,{PAGE.decode()}"), "adapter"),
    "redirects to a file": (lambda m: to(f"file://{m}/{TEST}"), "adapter"),
    "redirects to a closed port": (lambda m: to("http://127.0.0.1:9/"), "refused"),
    "redirects to no port": (lambda m: to("http://127.0.0.1:99999/"), "Port|port"),
    "redirects to no host": (lambda m: to("http://a..b/"), "label empty"),
    "redirects nowhere": (lambda m: send(b"", status=302), "holds something else"),
}


@pytest.mark.parametrize("how", SERVERS)
def test_faulty_servers(
    mirror: Path,
    true: dict[str, bytes],
    serve: Callable[[Answer], Server],
    whole: str,
    tried: Tried,
    how: str,
) -> None:
    answer, expected = SERVERS[how]
    faulty = serve(answer(mirror)).url
    assert download.fetch([TEST], [faulty, whole]) == {TEST: true[TEST]}
    assert re.search(expected, why_not(faulty, TEST))
    tried(
        PART, "a server that sends pages or errors, stalls, drops, redirects, or does not end",
        HELD, CONTROL,
    )  # fmt: skip


DELIVERS = {
    "no length": b"",
    "a length below 0": b"Content-Length: -5\r\n",
    "the archive as transport encoding": b"Content-Encoding: gzip\r\n",
    "another type": b"Content-Type: text/html; charset=utf-8\r\n",
    "a length of no number": b"Content-Length: many\r\n",
    "an empty length": b"Content-Length: \r\n",
    "the length twice": b"Content-Length: SIZE\r\n" * 2,
}


@pytest.mark.parametrize("how", DELIVERS)
def test_a_server_with_odd_headers_delivers(
    mirror: Path, true: dict[str, bytes], serve: Callable[[Answer], Server], tried: Tried, how: str
) -> None:
    archive = (mirror / TEST).read_bytes()
    header = DELIVERS[how].replace(b"SIZE", b"%d" % len(archive))
    server = serve(raw(OK + header + b"\r\n" + archive))
    assert download.fetch([TEST], [server.url]) == {TEST: true[TEST]}
    tried(PART, "a server with an odd header, whose archive is true", "the true contents are taken")


NO_ADDRESS = OK.replace(b"200 OK", b"302 Found") + b"Location: %b\r\n\r\n"
NONSENSE = {
    "redirects to no address": NO_ADDRESS % b"http://[/",
    "redirects to no text": NO_ADDRESS % b"\xff\xfe",
    "sends noise": bytes(range(32)) * 10,
    "sends what a terminal obeys": b"\x1b[2J\x1b]0;title\x07\r\n",
}


@pytest.mark.parametrize("how", NONSENSE)
def test_servers_that_answer_nonsense(
    mirror: Path, true: dict[str, bytes], serve: Callable[[Answer], Server], tried: Tried, how: str
) -> None:
    assert goes_on(serve(raw(NONSENSE[how])).url, mirror, TEST, true)
    tried(
        PART, "a server that sends pages or errors, stalls, drops, redirects, or does not end",
        HELD, CONTROL,
    )  # fmt: skip


@pytest.mark.parametrize("announced", [LENGTH, OK + b"X: %d\r\n\r\n"], ids=["length", "no length"])
def test_an_archive_that_comes_in_drips_meets_the_deadline(
    mirror: Path,
    true: dict[str, bytes],
    serve: Callable[[Answer], Server],
    tried: Tried,
    monkeypatch: pytest.MonkeyPatch,
    announced: bytes,
) -> None:
    archive = (mirror / TEST).read_bytes()

    def drip(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(announced % len(archive))
        for byte in archive:
            request.wfile.write(bytes([byte]))
            time.sleep(0.05)

    monkeypatch.setattr(download, "DEADLINE", 1)
    began = time.monotonic()
    assert "not complete after 1 seconds" in goes_on(serve(drip).url, mirror, TEST, true)
    assert time.monotonic() - began < 20  # all of it would take four minutes, twice
    tried(PART, "a server that sends a byte at a time", f"left at the deadline; {HELD}", CONTROL)


@pytest.mark.parametrize("how", ["a web page with status 200", "drops half-way", "does not end"])
def test_the_stage_leaves_nothing_of_a_faulty_server(
    mirror: Path,
    serve: Callable[[Answer], Server],
    stage: Callable[[str], str],
    tried: Tried,
    how: str,
) -> None:
    answer, expected = SERVERS[how]
    faulty, good = answer(mirror), files_of(mirror)
    server = serve(lambda request: (faulty if TEST in request.path else good)(request))
    assert re.search(expected, stage(server.url))
    assert len(server.asked) == 4
    tried(
        PART, "the stage, with a server that fails at the last of the four archives",
        "one line, exit code 1, no folder data/", CONTROL,
    )  # fmt: skip


def process(place: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The stage as a process in this folder, with one source: others are behind a dead proxy."""
    env = repository.environment() | {
        "PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent),
        "FASHION_MNIST_MIRROR": str(place), "no_proxy": "127.0.0.1",
        "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "stages.download_fashion_mnist"], cwd=folder, env=env,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "a web page with status 200"])
def test_as_a_process_it_leaves_nothing(
    mirror: Path,
    bad: Path,
    tmp_path: Path,
    serve: Callable[[Answer], Server],
    tried: Tried,
    how: str,
) -> None:
    place: str | Path = bad
    if how == "truncated":
        put(bad / TEST, (mirror / TEST).read_bytes()[:-1])
    else:
        place = serve(SERVERS[how][0](mirror)).url
    folder = tmp_path / "process"
    folder.mkdir()
    done = process(place, folder)
    assert done.returncode == 1 and done.stdout == ""
    *each, error = done.stderr.splitlines()
    assert error.startswith(f"error: no source delivers Fashion-MNIST: {place}: ")
    assert len(each) == 5 and not any(line.startswith(("error", "Traceback")) for line in each)
    assert not list(folder.glob("data/**/*"))
    tried(
        PART, "the stage as a process, with a spoilt archive or a page in its only source",
        "one line, exit code 1, nothing in data/", CONTROL,
    )  # fmt: skip


@pytest.mark.slow
def test_unspoilt_archives_deliver(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = process(mirror, tmp_path)
    assert done.returncode == 0 and done.stderr == done.stdout == ""
    assert integrity.md5(tmp_path / DATA) == recorded_digest(monkeypatch)
