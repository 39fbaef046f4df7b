"""A bad params.yaml ends a stage and `make repair` in one line, before anything is written.

All mistakes and their messages are in tests/lab/test_params.py.
"""

import importlib
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lab import params
from stages import train
from tests.conftest import Program
from tests.inputs import SPECIAL_FILES
from tests.lab.test_params import GOOD, NOISE, replaced
from tools import repair

fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "7. Parameters")
HELD = "one line: the key, line or file, and what is accepted; exit code 2; nothing written"
CONTROL = "a good file passes the check: then the data are missing, exit code 1"
FILE = Path("params.yaml")
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
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc/tmp/stages").mkdir(parents=True)


@pytest.fixture
def refusal(in_process: Program) -> Refusal:
    """A function that runs a stage with a bad file and returns its message."""

    def refuse(contents: str | None = None) -> str:
        if contents is not None:
            FILE.write_text(contents)
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
EXPLOSIONS += [
    (LEVELS, ["[" * 60_000, "[" * 5_000 + "]" * 5_000]),
    (LEVELS, [replaced("seed: 1", f"seed: {'[' * 5_000}{']' * 5_000}")]),
    ("expected at most 100,000 bytes", [replaced("  - 256\n", "  - 1\n" * 200_000)]),
    ("expected at most 100,000 bytes", [GOOD + "".join(f"k{i}: 1\n" for i in range(100_000))]),
]


@fault(
    "aliases and merges that explode or contain themselves, 10,000 hidden layers,"
    " lists within lists, and files of megabytes",
    IN_TIME,
    "without the checks, a small one is accepted and large ones take minutes",
)
def test_explosions_are_refused_at_once(refusal: Refusal, times: Times) -> None:
    cases = [(expected, contents) for expected, files in EXPLOSIONS for contents in files]
    for expected, contents in cases:
        assert re.match(expected, line := refusal(contents)), f"{contents[:100]!r}: {line}"
    times(len(cases))


def test_good_files_pass_and_aliases_would_without_the_check(
    in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_data = "data/fashion_mnist/train.safetensors: cannot be read"
    FILE.write_text(GOOD)
    before = snapshot()
    assert message(in_process(train, "mlp"), 1).startswith(no_data)
    assert snapshot() == before
    FILE.write_text(ALIAS_OF_A_NUMBER)
    monkeypatch.setattr(params, "_require_plain", lambda text, path: None)
    assert message(in_process(train, "mlp"), 1).startswith(no_data)


APPLY = "tag:yaml.org,2002:python/object/apply:os.system"
TAGS = [
    '!!python/object/apply:os.system ["touch canary"]',
    '!!python/object/new:os.system ["touch canary"]',
    f'!<{APPLY}> ["touch canary"]',
    '!run ["touch canary"]',
    *("!!python/name:os.system", "!!binary dG91Y2ggY2FuYXJ5", "!!set {1, 2}", '!!int "1"'),
]


@fault(
    "tags of YAML, among them those that run code: as a value, a key, and all of it",
    f"{HELD}; the code did not run",
    "PyYAML's unsafe loader runs it",
)
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


@fault("no file, or a folder, link, socket or pipe", HELD, CONTROL)
@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_special_files_are_refused(refusal: Refusal, kind: str) -> None:
    make, expected = SPECIAL_FILES[kind]
    make(FILE)
    assert re.match(f"cannot be read: .*({expected})", refusal())


# One of each class.
MISTAKES: dict[str | bytes, str] = {
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
    GOOD + "# \n" * 100_000: "expected at most 100,000 bytes",
}
OBJECT, OUTPUT = Path(".dvc/cache/files/md5/00/00"), Path("results/metrics.json")
RWLOCK, LOCK = Path(".dvc/tmp/rwlock"), Path("dvc.lock")


@fault(
    "a mistake of each class, by a stage and tools.repair, also with --damaged",
    "one line, exit code 2, nothing repaired, removed or written",
    "with a good file the half-written rwlock and the damaged object are removed",
)
@pytest.mark.slow
def test_nothing_is_written_or_repaired_with_bad_parameters(
    in_process: Program, times: Times
) -> None:
    # What `tools.repair --damaged` would remove, and an output.
    for path in (RWLOCK, OBJECT, OUTPUT, LOCK):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    programs = ((train, "mlp"), (repair,), (repair, "--damaged"))
    for contents, expected in MISTAKES.items():
        FILE.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        before = snapshot()
        for module, *arguments in programs:
            line = message(in_process(module, *arguments), 2)
            assert line.startswith(f"params.yaml: {expected}"), line
            assert snapshot() == before, expected
    times(len(programs) * len(MISTAKES))
    FILE.write_text(GOOD)  # the control
    LOCK.unlink()
    assert in_process(repair, "--damaged").returncode == 0
    assert not RWLOCK.exists() and not OBJECT.exists() and OUTPUT.exists()
