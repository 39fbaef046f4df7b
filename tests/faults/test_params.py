"""A bad params.yaml ends a stage and `make mend` in one line, before anything is written.

All mistakes and their messages are in tests/lab/test_params.py.
"""

import contextlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks.clones import ROOT
from lab import params, repository
from stages import train
from tests.conftest import Program
from tests.inputs import SPECIAL_FILES
from tests.lab.test_params import GOOD, NOISE, replaced
from tools import mend

fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "7. Parameters")
HELD = "one line: the key, line or file, and what is accepted; exit code 2; nothing written"
CONTROL = "a good file passes the check: then the data are missing, exit code 1"
IN_TIME = f"{HELD}, in less than 10 seconds of CPU"
Refusal = Callable[..., str]
Times = Callable[[int], None]


def snapshot() -> dict[Path, tuple[int, ...]]:
    """All files in the current folder and when they were written, less the stages' locks."""
    paths = [path for path in Path().rglob("*") if "stages" not in path.parts]
    stats = [path.lstat() for path in paths]
    states = [(stat.st_mode, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
    return dict(zip(paths, states, strict=True))


def message(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a program printed before it ended with this exit code."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert re.fullmatch("error: .{,400}\n", done.stderr) and done.stderr[:-1].isprintable()
    return done.stderr.removeprefix("error: ")


@pytest.fixture(autouse=True)
def _empty_folder() -> Iterator[None]:
    """Work in an empty folder, and not in one of pytest's: other users cannot enter those."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        locks = Path(".dvc/tmp/stages")
        locks.mkdir(parents=True)
        locks.chmod(0o777)
        yield


def write(contents: str | bytes | None) -> None:
    path = Path("params.yaml")
    path.unlink(missing_ok=True)
    if contents is not None:
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())


@pytest.fixture
def refusal(in_process: Program) -> Refusal:
    """A function that runs a stage with a bad file and returns its message."""

    def refuse(contents: str | None = None) -> str:
        if contents is not None:
            write(contents)
        before = snapshot()
        began = time.process_time()  # of the CPU: other programs do not count
        line = message(in_process(train, "mlp"), 2)
        assert time.process_time() - began < 10
        assert snapshot() == before
        assert line.startswith("params.yaml: ")
        return line.removeprefix("params.yaml: ")

    return refuse


def nested(first: str, again: Callable[[str], str]) -> str:
    """Ten lines, each ten times as large as the one before when its aliases are followed."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {again(f'*a{i - 1}')}" for i in range(1, 10)]
    return "\n".join(lines) + "\n"


VALUES = nested("[ha]", lambda alias: f"[{', '.join([alias] * 10)}]")
MERGES = nested("{ha: ha}", lambda alias: f"{{<<: [{', '.join([alias] * 10)}], x: {alias}}}")
ALIAS = r"line \d+: expected plain values, found the alias \*"
LEVELS = r"line \d+: expected .*\d levels"
TAG = r"line \d+: expected plain values, found '?the tag "
ALIAS_OF_A_NUMBER = replaced("seed: 1\n\nlr: 0.03", "seed: &s 1\nlr: *s")
# A message, and the files that it is for.
EXPLOSIONS = [
    (ALIAS, [VALUES + GOOD, GOOD + VALUES, VALUES + replaced("seed: 1", "seed: *a9")]),
    (ALIAS, [MERGES + GOOD, f"{MERGES}<<: *a9\n{GOOD}"]),
    (ALIAS, [f"a: &a [{', '.join(['x'] * 5000)}]\nb: [{'*a, ' * 5000}]\n{GOOD}"]),
    (ALIAS, [replaced("  - 256\n  - 128\n", "    &h [*h]\n"), f"mlp: &m {{mlp: *m}}\n{GOOD}"]),
    (ALIAS, [f"mlp: &m\n  <<: *m\n{GOOD}", f"&all\nx: *all\n{GOOD}", f"? &k [*k]\n: 1\n{GOOD}"]),
    (ALIAS, [replaced("seed: 1", "seed: *s"), ALIAS_OF_A_NUMBER]),
    (r"mlp\.hidden = .*at most 64 items, not 10001", [replaced("  - 256", "  - 1\n" * 10_000)]),
    (r"regression_data\.weights = .*at most 100 items", [replaced("  - 2.0", "  - 1.0\n" * 7_000)]),
    (LEVELS, [f"{'{a: ' * 5000}{'}' * 5000}", "- " * 5000, "? " * 5000]),
]
LARGE = [
    (LEVELS, ["[" * 60_000, "[" * 5_000 + "]" * 5_000]),
    (LEVELS, [replaced("seed: 1", f"seed: {'[' * 5_000}{']' * 5_000}")]),
    ("expected at most .* characters", [replaced("  - 256\n", "  - 1\n" * 200_000)]),
    ("expected at most .* characters", [GOOD + "".join(f"k{i}: 1\n" for i in range(100_000))]),
]


TABLES = {
    "aliases and merges that explode or contain themselves, 10,000 hidden layers": EXPLOSIONS,
    "lists within lists, and files of megabytes": LARGE,
}


@fault("{what}", IN_TIME, "without the checks, a small one is accepted and large ones take minutes")
@pytest.mark.parametrize("what", TABLES)
def test_explosions_are_refused_at_once(refusal: Refusal, times: Times, what: str) -> None:
    for expected, files in TABLES[what]:
        for contents in files:
            assert re.match(expected, line := refusal(contents)), f"{contents[:100]!r}: {line}"
    times(sum(len(files) for _, files in TABLES[what]))


def test_good_files_pass_and_aliases_would_without_the_check(
    in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_data = "data/fashion_mnist/train.safetensors: cannot be read"
    write(GOOD)
    before = snapshot()
    assert message(in_process(train, "mlp"), 1).startswith(no_data)
    assert snapshot() == before
    write(ALIAS_OF_A_NUMBER)
    monkeypatch.setattr(params, "_require_plain", lambda text, path: None)
    assert message(in_process(train, "mlp"), 1).startswith(no_data)


APPLY = "tag:yaml.org,2002:python/object/apply:os.system"
TAGS = [
    '!!python/object/apply:os.system ["touch canary"]',
    '!!python/object/new:os.system ["touch canary"]',
    "!!python/object/apply:subprocess.check_output [[touch, canary]]",
    "!!python/object/apply:eval [\"open('canary', 'w')\"]",
    "!!python/object:pathlib.Path {touch: canary}",
    f'!<{APPLY}> ["touch canary"]',
    '!run ["touch canary"]',
]
TAGS += ["!!python/name:os.system", "!!python/module:os", "!!binary dG91Y2ggY2FuYXJ5"]
TAGS += ["!!set {1, 2}", "!!omap [a: 1]", "!!timestamp 2001-01-01", '!!int "1"', "!!str 1"]


@fault(
    "tags of YAML, among them those that run code: as a value, a key, and all of it",
    f"{HELD}; the code did not run", "PyYAML's unsafe loader runs it",
)  # fmt: skip
def test_tags_are_refused_and_run_nothing(refusal: Refusal, times: Times) -> None:
    texts = [f'%TAG !x! {APPLY[:-9]}\n---\nseed: !x!os.system ["touch canary"]\n', *TAGS]
    for tag in TAGS:
        texts += [replaced("seed: 1", f"seed: {tag}"), f"{GOOD}\nx: {tag}\n", f"? {tag}\n: 1\n"]
    for text in texts:
        assert re.match(TAG, line := refusal(text)), f"{text}: {line}"
        assert not Path("canary").exists(), text
    times(len(texts))
    importlib.import_module("yaml").unsafe_load(TAGS[0])  # the control
    assert Path("canary").exists()


def unreadable(path: Path) -> None:
    path.write_text(GOOD)
    path.chmod(0)


PLACES = SPECIAL_FILES | {"an unreadable file": (unreadable, "Permission denied")}


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Root may read everything: be another user in this folder for a while."""
    if os.geteuid():
        yield
        return
    os.chown(".", 65534, -1)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@fault("no file, or a folder, link, socket, pipe or unreadable file", HELD, CONTROL)
@pytest.mark.parametrize("kind", PLACES)
def test_special_files_are_refused(refusal: Refusal, kind: str) -> None:
    make, expected = PLACES[kind]
    make(Path("params.yaml"))
    with as_a_user():
        assert re.match(f"cannot be read: .*({expected})", refusal())


# One of each class.
MISTAKES: dict[str | bytes | None, str] = {
    replaced("epochs: 20", "epochs: true"): "mlp.epochs = True: expected a valid integer",
    replaced("dropout: 0.0", "dropout: 1.0"): "mlp.dropout = 1.0: expected less than 1",
    replaced("dropout: 0.0", "drop: 0.0"): "mlp.drop: unknown key",
    replaced("seed: 1", ""): "seed: this key is missing",
    replaced("seed: 1", "seed: 1\nseed: 1"): 'line 3: expected YAML: found duplicate key "seed"',
    replaced("seed: 1", "seed: ["): "line 6: expected YAML",
    "": "the file = None: expected a section",
    NOISE: "expected text in UTF-8",
    MERGES + GOOD: "line 2: expected plain values, found the alias *a0",
    replaced("seed: 1", f"seed: {TAGS[0]}"): "line 2: expected plain values, found the tag",
    "[" * 10: "line 1: expected YAML of at most",
    GOOD + "# \n" * 100_000: "expected at most 100000 characters",
    None: "cannot be read: No such file",
}
RWLOCK = Path(".dvc/tmp/rwlock")
OBJECT = Path(".dvc/cache/files/md5/00/00")
OUTPUT, LOCK = Path("results/metrics.json"), Path("dvc.lock")


@fault(
    "a mistake of each class, by a stage, tools.mend and tools.mend --damaged; one by processes",
    "one line, exit code 2, nothing repaired, removed or written",
    "with a good file the half-written rwlock and the damaged object are removed",
)
@pytest.mark.slow
def test_nothing_is_written_or_repaired_with_bad_parameters(
    in_process: Program, times: Times
) -> None:
    # What `tools.mend --damaged` would remove, and an output.
    for path in (RWLOCK, OBJECT, OUTPUT, LOCK):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    programs = ((train, "mlp"), (mend,), (mend, "--damaged"))
    for contents, expected in MISTAKES.items():
        write(contents)
        before = snapshot()
        for module, *arguments in programs:
            line = message(in_process(module, *arguments), 2)
            assert line.startswith(f"params.yaml: {expected}"), line
            assert snapshot() == before, expected
    for module, *arguments in programs:
        done = subprocess.run(
            [sys.executable, "-m", module.__name__, *arguments], capture_output=True, text=True,
            env=repository.environment() | {"PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        assert message(done, 2).startswith("params.yaml: cannot be read: No such file")
        assert snapshot() == before
    times(len(programs) * (len(MISTAKES) + 1))
    write(GOOD)  # the control
    LOCK.unlink()
    assert in_process(mend, "--damaged").returncode == 0
    assert not RWLOCK.exists() and not OBJECT.exists() and OUTPUT.exists()
