"""A bad params.yaml ends a stage in one line and with exit code 2, before anything is written.

Which message is for which mistake is in tests/lab/test_params.py. Here the real stage runs.
"""

import contextlib
import copy
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml
from ruamel.yaml import YAML

import stages
from benchmarks.clones import ROOT
from lab import params, repository
from stages import train

GOOD = (ROOT / "tests/params.yaml").read_text(encoding="utf-8")
TREE: dict[str, Any] = YAML(typ="safe", pure=True).load(GOOD)
LOCKS = Path(".dvc/tmp/stages")
PART = "7. Parameters"
HELD = "one line: the key, line or file, and what is accepted; exit code 2; nothing written"
CONTROL = "a good file passes the check: then the data are missing, exit code 1"
Tried = Callable[..., None]
Refusal = Callable[..., str]


def everything() -> dict[Path, tuple[int, ...]]:
    """All that lies here, and when it was written, less the notes of the stages' lock."""
    found = {}
    for path in Path().rglob("*"):
        if path not in (Path(".dvc"), Path(".dvc/tmp")) and not path.is_relative_to(LOCKS):
            stat = path.lstat()
            when = () if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
            found[path] = (stat.st_mode, stat.st_ino, *when)
    return found


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in which `python -m stages.train mlp` is about to run in this process."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "stages/train.py"), "mlp"])
    monkeypatch.delenv("DVC_STAGE", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as folder:  # pytest's are closed to other users
        monkeypatch.chdir(folder)
        yield Path(folder)
        monkeypatch.undo()
    signal.signal(signal.SIGTERM, before)


def ended(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of the stage and what it says of its error, which must be one line."""
    with pytest.raises(SystemExit) as end:
        stages.run(train.main)
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.endswith("\n")
    assert err[:-1].isprintable() and len(err) < 400, err
    assert isinstance(end.value.code, int)
    return end.value.code, err[:-1]


@pytest.fixture
def refusal(place: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """A function that writes a bad file, runs the stage, and returns the line that refuses it."""

    def refuse(contents: str | bytes | None) -> str:
        if contents is not None:
            bytes_ = contents if isinstance(contents, bytes) else contents.encode()
            (place / "params.yaml").write_bytes(bytes_)
        before = everything()
        began = time.process_time()
        code, line = ended(capsys)
        assert code == 2, line
        assert line.startswith("error: params.yaml: ")
        assert time.process_time() - began < 5  # seconds of CPU, as other work slows the clock
        assert everything() == before
        return line.removeprefix("error: params.yaml: ")

    return refuse


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield from leaves(value, (*above, key)) if isinstance(value, dict) else [(*above, key)]


def with_value(path: tuple[Any, ...], written: str) -> str:
    """The good file with this in place of one value; JSON, as that is YAML too."""
    tree = copy.deepcopy(TREE)
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = "@@"
    return json.dumps(tree, indent=1).replace('"@@"', written)


LEAVES = list(leaves(TREE))
ANY = ["null", "{}", "{a: 1}", "[[1]]", "2001-01-01", "'1'", "''", "fast", "'Füße'"]
NUMBER = ["true", "false", ".nan", ".inf", "-.inf", "1e400", "[1]", f"1{'0' * 400}"]
BAD: dict[type, list[str]] = {
    int: [*ANY, *NUMBER, "-1", "1.5", "1.0", "1e3", "-.0", str(2**63), str(-(2**63))],
    float: [*ANY, *NUMBER, "-1e7", "1e300", "1e7"],
    str: [*ANY, *NUMBER, "1", "RELU", "'exact '", "linear\\0"],
    list: [*ANY, "true", "1", "[]", "[null]", "['1']", "[true]", "[.nan]", "[.inf]", "[1e300]"],
}
SAYS_WHAT_IS_ACCEPTED = (
    r": expected (a valid (integer|number)|a finite number|a list|a section of keys|'\w+'"
    r"|greater than|less than|at (least|most) \d+ item)"
)


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_no_key_takes_a_value_of_another_kind(
    refusal: Refusal, tried: Tried, path: tuple[str, ...]
) -> None:
    good: Any = TREE
    for key in path:
        good = good[key]
    name, values = ".".join(path), BAD[type(good)]
    for written in values:
        line = refusal(with_value(path, written))
        assert re.match(rf"{re.escape(name)}(\.0)? = ", line), f"{written}: {line}"
        assert re.search(SAYS_WHAT_IS_ACCEPTED, line), f"{written}: {line}"
    tried(
        PART, "each key with values of other types, NaN, infinity, negative, huge, out of range",
        HELD, CONTROL, times=len(values),
    )  # fmt: skip


SECTIONS = [key for key, value in TREE.items() if isinstance(value, dict)]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_nothing_else(refusal: Refusal, tried: Tried, section: str) -> None:
    values = ["null", "true", "1", "fast", "[]", "[1]", ".nan"]
    for written in values:
        line = refusal(with_value((section,), written))
        assert line.startswith(f"{section} = ") and "expected a section of keys" in line
    tried(PART, "a section that is a number, a word, a list or nothing", HELD, CONTROL, len(values))


@pytest.mark.parametrize("path", [*LEAVES, *((key,) for key in SECTIONS)], ids=".".join)
def test_a_key_is_there_once_and_spelt_right(
    refusal: Refusal, tried: Tried, path: tuple[str, ...]
) -> None:
    name, key = ".".join(path), path[-1]
    tree = copy.deepcopy(TREE)
    section = tree if len(path) == 1 else tree[path[0]]
    value = section.pop(key)
    assert refusal(json.dumps(tree)) == f"{name}: this key is missing"
    section[key.upper()] = value
    line = refusal(json.dumps(tree))
    accepted = ", ".join(TREE if len(path) == 1 else TREE[path[0]])
    unknown = ".".join([*path[:-1], key.upper()])
    assert line == f"{unknown}: unknown key; accepted here: {accepted} (and 1 more)"
    section[key], section["twin"] = section.pop(key.upper()), value
    line = refusal(json.dumps(tree, indent=1).replace('"twin"', f'"{key}"'))
    assert re.fullmatch(rf'line \d+: expected YAML: found duplicate key "{key}".*', line)
    tried(PART, "each key and section missing, misspelt, or there twice", HELD, CONTROL, times=3)


NOISE = random.Random(1).randbytes(1000)
LINE = r"line \d+: "
FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the file = None: expected a section"),
    "a line end": ("\n", "the file = None: expected a section"),
    "comments alone": ("# seed: 1\n", "the file = None: expected a section"),
    "null": ("null", "the file = None: expected a section"),
    "an empty section": ("{}", r"seed: this key is missing \(and 7 more\)"),
    "one word": ("seed", "the file = 'seed': expected a section"),
    "a list": ("- seed: 1", "the file = .*: expected a section"),
    "noise": (NOISE, "expected text in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + NOISE, "expected text in UTF-8"),
    "an archive": (b"\x1f\x8b\x08\x00" + NOISE, "expected text in UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "expected text in UTF-8"),
    "Latin-1": (replaced("seed: 1", "seed: 1  # Füße").encode("latin-1"), "expected text in UTF-8"),
    "cut within a letter": ("# Fuß".encode()[:-1], "expected text in UTF-8"),
    "a web page": ("<html><body>Moved</body></html>", "the file = '<html>.*: expected a section"),
    "a program": ("import os\nos.remove('x')\n", "the file = .*: expected a section"),
    "a diff": ("--- a\n+++ b\n@@ -1 +1 @@\n", "the file = .*: expected a section"),
    "a merge conflict": (
        replaced("seed: 1", "<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> other"),
        LINE + "expected YAML",
    ),
    "two documents": (f"{GOOD}---\n{GOOD}", LINE + "expected YAML: but found another document"),
    "more after the end": (f"{GOOD}...\nseed: 2\n", LINE + "expected YAML: but found another"),
    "tabs": (GOOD.replace("  ", "\t"), LINE + r"expected YAML: found character '\\t'"),
    "one tab": (replaced("  epochs", "\tepochs"), LINE + "expected YAML"),
    "cut within a key": (GOOD[:-10], LINE + "expected YAML"),
    "cut within a section": (GOOD[: GOOD.index("  hidden")], r"mlp\.hidden: this key is missing"),
    "an open list": (replaced("seed: 1", "seed: [1"), LINE + "expected YAML"),
    "an open quote": (replaced("seed: 1", "seed: '1"), LINE + "expected YAML"),
    "crooked indentation": (replaced("  epochs", "   epochs"), LINE + "expected YAML"),
    "no space after a colon": (replaced("seed: 1", "seed:1"), LINE + "expected YAML"),
    "an equals sign": (replaced("seed: 1", "seed = 1"), LINE + "expected YAML"),
    "a reserved character": (replaced("seed: 1", "seed: @1"), LINE + "expected YAML"),
    "another version of YAML": (f"%YAML 2.0\n---\n{GOOD}", LINE + "expected YAML: found incompat"),
    "a number as key": (f"1: 2\n{GOOD}", "1: expected the name of a parameter"),
    "nothing as key": (f": 2\n{GOOD}", "None: expected the name of a parameter"),
    "a list as key": (f"? [a, b]\n: 2\n{GOOD}", ".*: expected the name of a parameter"),
    "a section as key": (f"? {{a: b}}\n: 2\n{GOOD}", LINE + "expected YAML: found unhashable key"),
    "a path as key": (f"mlp.dropout: 0.5\n{GOOD}", r"mlp\.dropout: unknown key; accepted here"),
    "a long word": (replaced("seed: 1", f"seed: {'x' * 60_000}"), "seed = 'xxx.*xxx': expected"),
    "a dash for a value": (replaced("seed: 1", "seed: -"), LINE + "expected YAML"),
    "a merge of no section": (f"<<: 1\n{GOOD}", LINE + "expected YAML: expected a mapping"),
    "text as a list of letters": (replaced("  - 256\n  - 128", "    256, 128"), r"mlp\.hidden = "),
    "train of fewer than the unknowns": (
        replaced("train: 1000", "train: 2"),
        "regression_data: expected train of at least 3",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_file_of_parameters_is_refused(
    refusal: Refusal, tried: Tried, kind: str
) -> None:
    contents, expected = FILES[kind]
    assert re.match(expected, refusal(contents))
    tried(
        PART, "a file that is empty, binary, cut, two documents, with tabs, or something else",
        HELD, CONTROL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        # errors that are not the parser's own
        (f"%YAML 1.3\n---\n{GOOD}", "expected YAML: version"),
        (f"%YAML 1.1\n---\n{replaced('seed: 1', 'seed: -_')}", LINE + "expected YAML"),
        (f"? [{{a: 1}}]\n: 2\n{GOOD}", "expected YAML: unhashable"),
        # errors that name no line
        (replaced("lr: 0.03", "lr: 2001-99-99"), "line 4: expected YAML: month must be in 1..12"),
        (replaced("seed: 1", "seed: 0x_"), "line 2: expected YAML: invalid literal"),
        (replaced("seed: 1", f"seed: 1{'0' * 5000}"), "line 2: expected YAML: Exceeds the limit"),
        (replaced("seed: 1", "seed: 1\0"), "line 2: expected YAML: unacceptable character #x0000"),
        (replaced("seed: 1", "seed: 1 # \x07"), "line 2: expected YAML: unacceptable character"),
        # keys that a terminal obeys, or that fill it
        (f'"\\e[2Jseed": 1\n{GOOD}', r"'?\\x1b\[2Jseed'?: unknown key"),
        (f"? {'k' * 5000}\n: 1\n{GOOD}", "'kkk.*kkk': unknown key"),
    ],
    ids=[
        "1.3",
        "IndexError",
        "TypeError",
        "date",
        "hex",
        "digits",
        "NUL",
        "bell",
        "escape",
        "long",
    ],
)
def test_what_the_parser_stumbles_over_is_refused(
    refusal: Refusal, tried: Tried, contents: str, expected: str
) -> None:
    assert re.match(expected, refusal(contents))
    tried(
        PART,
        "what ruamel.yaml fails on with other errors, keys that a terminal obeys",
        HELD,
        CONTROL,
    )


def unfolding(first: str, again: Callable[[str], str]) -> str:
    """Nine lines, each of ten times the one before: a thousand million."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {again(f'*a{i - 1}')}" for i in range(1, 10)]
    return "\n".join(lines) + "\n"


VALUES = unfolding("[ha]", lambda alias: f"[{', '.join([alias] * 10)}]")
MERGES = unfolding("{ha: ha}", lambda alias: f"{{<<: [{', '.join([alias] * 10)}], x: {alias}}}")
ALIAS = LINE + r"expected plain values, found the alias \*"
LEVELS = LINE + r"expected .*\d levels"
EXPLOSIONS: dict[str, tuple[str, str]] = {
    "a thousand million laughs": (VALUES + GOOD, ALIAS),
    "as a value": (VALUES + replaced("seed: 1", "seed: *a9"), ALIAS),
    "after the parameters": (GOOD + VALUES, ALIAS),
    "by merges": (MERGES + GOOD, ALIAS),
    "merged into the parameters": (f"{MERGES}<<: *a9\n{GOOD}", ALIAS),
    "of one line": (f"a: &a [{', '.join(['x'] * 5000)}]\nb: [{'*a, ' * 5000}]\n{GOOD}", ALIAS),
    "a list within itself": (replaced("  - 256\n  - 128\n", "    &h [*h]\n"), ALIAS),
    "a section within itself": (f"mlp: &m {{mlp: *m}}\n{GOOD}", ALIAS),
    "a section merged into itself": (f"mlp: &m\n  <<: *m\n{GOOD}", ALIAS),
    "a file within itself": (f"&all\nx: *all\n{GOOD}", ALIAS),
    "a key within itself": (f"? &k [*k]\n: 1\n{GOOD}", ALIAS),
    "an alias of nothing": (replaced("seed: 1", "seed: *s"), ALIAS),
    "an alias of a number": (replaced("seed: 1\n\nlr: 0.03", "seed: &s 1\nlr: *s"), ALIAS),
    "ten thousand hidden layers": (
        replaced("  - 256\n", "  - 1\n" * 10_000),
        r"mlp\.hidden = \[1, 1, .*: expected at most 64 items, not 10001",
    ),
    "ten thousand weights": (
        replaced("  - 2.0\n", "  - 1.0\n" * 7_000),
        r"regression_data\.weights = .*: expected at most 100 items, not 7001",
    ),
    "sections within sections": (f"{'{a: ' * 5000}{'}' * 5000}", LEVELS),
    "lists within lists by dashes": ("- " * 5000, LEVELS),
    "keys within keys": ("? " * 5000, LEVELS),
}


@pytest.mark.parametrize("kind", EXPLOSIONS)
def test_what_unfolds_without_end_is_refused_at_once(
    refusal: Refusal, tried: Tried, kind: str
) -> None:
    contents, expected = EXPLOSIONS[kind]
    assert re.match(expected, refusal(contents))
    tried(
        PART, "aliases and merges that explode or contain themselves, 10,000 hidden layers",
        f"{HELD}, in less than 5 seconds",
        "without the check for aliases, a small one is taken for good parameters",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ("[" * 60_000, LEVELS),
        ("[" * 5_000 + "]" * 5_000, LEVELS),
        (
            replaced("seed: 1", f"seed: {'[' * 5_000}{']' * 5_000}"),
            LEVELS,
        ),
        (replaced("  - 256\n", "  - 1\n" * 200_000), "expected at most .* characters"),
        (GOOD + "".join(f"k{i}: 1\n" for i in range(100_000)), "expected at most .* characters"),
    ],
    ids=["open lists", "lists", "a value", "a million layers", "many keys"],
)
def test_what_takes_the_parser_long_is_refused_at_once(
    refusal: Refusal, tried: Tried, contents: str, expected: str
) -> None:
    assert re.match(expected, refusal(contents))
    tried(
        PART, "lists within lists, and files of megabytes",
        f"{HELD}, in less than 5 seconds", "without the two limits, up to minutes",
    )  # fmt: skip


def test_without_the_check_for_aliases_they_would_be_followed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(params, "_require_plain", lambda text, path: None)
    Path("params.yaml").write_text(EXPLOSIONS["an alias of a number"][0])
    code, line = ended(capsys)
    assert code == 1 and "data" in line


APPLY = "tag:yaml.org,2002:python/object/apply:os.system"
TAGS = [
    '!!python/object/apply:os.system ["touch canary"]',
    '!!python/object/new:os.system ["touch canary"]',
    '!!python/object/apply:subprocess.check_output [[touch, canary]]',
    '!!python/object/apply:eval ["open(\'canary\', \'w\')"]',
    '!!python/object:pathlib.Path {touch: canary}',
    '!!python/name:os.system',
    '!!python/module:os',
    f'!<{APPLY}> ["touch canary"]',
    '!run ["touch canary"]',
    '!!binary dG91Y2ggY2FuYXJ5',
    '!!set {1, 2}',
    '!!omap [a: 1]',
    '!!timestamp 2001-01-01',
    '!!int "1"',
    '!!str 1',
]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_refused_and_runs_nothing(
    refusal: Refusal, tried: Tried, place: Path, tag: str
) -> None:
    texts = [replaced("seed: 1", f"seed: {tag}"), f"{GOOD}\nx: {tag}\n", f"? {tag}\n: 1\n", tag]
    for text in texts:
        line = refusal(text)
        assert re.match(LINE + "expected plain values, found '?the tag ", line)
        assert not (place / "canary").exists()
    tried(
        PART, "tags of YAML, among them those that run code: as a value, a key, and all of it",
        f"{HELD}; the code did not run", "PyYAML's unsafe loader runs it", times=len(texts),
    )  # fmt: skip


def test_a_tag_under_another_name_runs_nothing(refusal: Refusal, place: Path) -> None:
    line = refusal(f'%TAG !x! {APPLY[:-9]}\n---\nseed: !x!os.system ["touch canary"]\n')
    assert re.match("line 3: expected plain values, found '?the tag ", line)
    assert not (place / "canary").exists()


def test_an_unsafe_loader_would_run_it(place: Path) -> None:
    yaml = pytest.importorskip("yaml")
    yaml.unsafe_load(TAGS[0])
    assert (place / "canary").exists()


def as_a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # the whole path may be too long for a socket


def unreadable(path: Path) -> None:
    path.write_text(GOOD)
    path.chmod(0)


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda path: None, "No such file"),
    "a folder": (Path.mkdir, "Is a directory"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "a link through a file": (lambda path: path.symlink_to("/etc/passwd/none"), "Not a directory"),
    "a socket": (as_a_socket, "No such device|not supported"),
    "a named pipe": (os.mkfifo, "expected a file, found a named pipe"),
    "a file of others": (unreadable, "Permission denied"),
}


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Root may read everything: be somebody else for a while, in this folder."""
    if os.geteuid():
        yield
        return
    os.chown(".", 65534, -1)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_in_place_of_the_file_is_named(
    refusal: Refusal, tried: Tried, place: Path, kind: str
) -> None:
    make, expected = PLACES[kind]
    make(place / "params.yaml")
    with as_a_user():
        assert re.match(f"cannot be read: .*({expected})", refusal(None))
    tried(PART, "no file, or a folder, link, socket, pipe or unreadable file", HELD, CONTROL)


ODD: list[tuple[str, str, str, Any]] = [
    # what is replaced, by what, which value, what it is
    ("lr: 0.03", "lr: 1e-3", "lr", 1e-3),
    ("lr: 0.03", "lr: 1E5", "lr", 1e5),
    ("lr: 0.03", "lr: 1E+5", "lr", 1e5),
    ("lr: 0.03", "lr: 0.10", "lr", 0.1),
    ("lr: 0.03", "lr: .5", "lr", 0.5),
    ("lr: 0.03", "lr: 5.", "lr", 5.0),
    ("lr: 0.03", "lr: +0.5", "lr", 0.5),
    ("lr: 0.03", "lr: 1", "lr", 1.0),
    ("lr: 0.03", f"lr: 0.{'1' * 1000}", "lr", 1 / 9),
    ("lr: 0.03", "lr: 5e-324", "lr", 5e-324),
    ("seed: 1", "seed: 0x1F", "seed", 31),
    ("seed: 1", "seed: 0o17", "seed", 15),
    ("seed: 1", "seed: 010", "seed", 10),
    ("seed: 1", "seed: 1_000", "seed", 1000),
    ("seed: 1", f"seed: {2**63 - 1}", "seed", 2**63 - 1),
    ("seed: 1", "'seed':   1", "seed", 1),
    ("seed: 1", "? seed\n: 1", "seed", 1),
    ("seed: 1", "seed:\n  1", "seed", 1),
    ("seed: 1", "---\nseed: 1", "seed", 1),
    ("seed: 1", "seed: 1  # Füße, 靴, 👟", "seed", 1),
    ("seed: 1", "seed: 1  # a\ttab", "seed", 1),
    ("  - 256\n  - 128\n", "    [ 0x100, 128, ]\n", "hidden", (256, 128)),
    ("activation: relu", 'activation: "\\u0072elu"', "activation", "relu"),
    ("arithmetic: exact", "arithmetic: >-\n  exact", "arithmetic", "exact"),
]
WHOLE: dict[str, bytes] = {
    "as it is": GOOD.encode(),
    "CRLF": GOOD.replace("\n", "\r\n").encode(),
    "a byte order mark": GOOD.encode("utf-8-sig"),
    "no line end at the end": GOOD.rstrip("\n").encode(),
    "an end of the document": f"{GOOD}...\n".encode(),
    "JSON": json.dumps(TREE).encode(),
    "other order": json.dumps(dict(reversed(TREE.items()))).encode(),
}


def passes(place: Path, contents: bytes, capsys: pytest.CaptureFixture[str]) -> params.Params:
    """What the stage reads in the file, and DVC too, where it stops for lack of data."""
    Path("params.yaml").write_bytes(contents)
    before = everything()
    code, line = ended(capsys)
    assert code == 1 and line.startswith("error: data/fashion_mnist/train.safetensors: cannot be")
    assert everything() == before
    found = params.load()
    assert params.Params.model_validate(loads_yaml(contents.decode())) == found
    return found


@pytest.mark.parametrize(("old", "new", "key", "value"), ODD, ids=[odd[1][:20] for odd in ODD])
def test_odd_ways_to_write_a_value_are_read_as_they_are_meant(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    tried: Tried,
    old: str,
    new: str,
    key: str,
    value: Any,
) -> None:
    found = passes(place, replaced(old, new).encode(), capsys)
    assert getattr(found if key in TREE else found.mlp, key) == value
    tried(
        PART, "good values in odd ways: 1e-3, 1E5, 0.10, hexadecimal, CRLF, byte order mark, JSON",
        "read as they are meant, and as DVC reads them",
    )  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_good_files_pass_the_check(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert passes(place, WHOLE[kind], capsys) == params.parse(GOOD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "contents", "expected"),
    [
        ("tools.mend", replaced("dropout: 0.0", "dropout: 1.0"), "mlp.dropout = 1.0: expected"),
        ("tools.mend", MERGES + GOOD, "line 2: expected plain values, found the alias *a0"),
        ("tools.mend --damaged", None, "cannot be read: No such file"),
        ("stages.train mlp", replaced("epochs: 20", "epochs: true"), "mlp.epochs = True: expected"),
    ],
    ids=["mend", "mend merges", "mend damaged", "train"],
)
def test_as_a_process_it_ends_before_anything_is_mended_or_written(
    place: Path, tried: Tried, command: str, contents: str | None, expected: str
) -> None:
    if contents is not None:
        Path("params.yaml").write_text(contents)
    # What it would mend, and what it would remove as damaged.
    Path(".dvc/tmp").mkdir(parents=True)
    Path(".dvc/tmp/rwlock").write_text("{")
    Path(".dvc/cache/files/md5/00").mkdir(parents=True)
    Path(".dvc/cache/files/md5/00/00").write_text("not what its name says")
    Path("results").mkdir()
    Path("results/metrics.json").write_text("{}")
    Path("dvc.lock").write_text("")
    before = everything()
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], capture_output=True, text=True, check=False,
        env=repository.environment() | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: params.yaml: {expected}")
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    assert everything() == before
    tried(
        PART, "the same by `python -m tools.mend`, which `make repro` runs first, and a stage",
        "one line, exit code 2, nothing mended, removed or written",
        "with a good file the half-written rwlock is removed",
    )  # fmt: skip


@pytest.mark.slow
def test_with_a_good_file_it_is_mended(place: Path) -> None:
    Path("params.yaml").write_text(GOOD)
    Path(".dvc/tmp").mkdir(parents=True)
    Path(".dvc/tmp/rwlock").write_text("{")
    subprocess.run(
        [sys.executable, "-m", "tools.mend"], check=True, stdout=subprocess.DEVNULL,
        env=repository.environment() | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert not Path(".dvc/tmp/rwlock").exists()
