"""Good parameters are read as they are meant. Bad ones end a program in one line.

A stage and `make repair` refuse a bad params.yaml before anything is written.
"""

import importlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml
from pydantic import ValidationError
from ruamel.yaml.parser import Parser

from lab import params
from lab.schema import schema_of
from stages import train
from tests.conftest import Program
from tests.inputs import GOOD, SPECIAL_FILES, TREE, edited, replaced
from tools import repair
from tracking.repository import ROOT

fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "7. Parameters")
HELD = "one line: the key, line or file, and what is accepted; exit code 2; nothing written"
IN_TIME = f"{HELD}, in less than 10 seconds of CPU"
CONTROL = "a good file passes the check: then the data are missing, exit code 1"
FILE = Path("params.yaml")
# What `tools.repair --damaged` removes, an output, and what is half-written too.
OBJECT, OUTPUT = Path(".dvc/cache/files/md5/00/00"), Path("results/metrics.json")
RWLOCK, LOCK = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
Keys = tuple[str, ...]
Refusal = Callable[..., str]
Times = Callable[[int], None]


@pytest.fixture(autouse=True)
def _damaged_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (RWLOCK, OBJECT, OUTPUT, LOCK):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    Path(".dvc/tmp/stages").mkdir()


def snapshot() -> dict[Path, tuple[int, ...]]:
    """All files in the current folder and when they were written, less the stages' locks."""
    paths = [path for path in Path().rglob("*") if "stages" not in path.parts]
    stats = [path.lstat() for path in paths]
    states = [(stat.st_mode, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
    return dict(zip(paths, states, strict=True))


@pytest.fixture
def refusal(in_process: Program) -> Refusal:
    """A function that runs a program with a bad file and returns its message."""

    def refuse(contents: str | bytes | None = None, *program: Any) -> str:
        if contents is not None:
            FILE.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        before = snapshot()
        began = time.process_time()  # of the CPU: other programs do not count
        done = in_process(*(program or (train, "mlp")))
        assert time.process_time() - began < 10
        assert snapshot() == before
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert re.fullmatch("error: params.yaml: .{,400}\n", done.stderr), done.stderr
        line = done.stderr[:-1].removeprefix("error: params.yaml: ")
        assert line.isprintable()
        return line

    return refuse


def require_each(refusal: Refusal, files: list[tuple[str, list[Any]]]) -> int:
    """Refuse each of the files with its message, and return their number."""
    cases = [(expected, contents) for expected, listed in files for contents in listed]
    for expected, contents in cases:
        assert re.match(expected, line := refusal(contents)), f"{contents[:100]!r}: {line}"
    return len(cases)


def walk(section: dict[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Each key of the file, after those of the sections that it is in, and its value."""
    for key, value in section.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from walk(value, (*above, key))


def test_the_committed_file_is_good_and_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.load(ROOT / "params.yaml").lr = 1.0  # type: ignore[misc]


LR = ["1e-3", "1e-05", "1E5", "1E+5", "0.10", ".5", "5.", "+0.5", "1", "5e-324", f"0.{'1' * 999}"]
SEEDS = {"0x1F": 31, "0o17": 15, "010": 10, "1_000": 1000, str(2**63 - 1): 2**63 - 1}
SEED = ["'seed':   1", "? seed\n: 1", "seed:\n  1", "---\nseed: 1", "seed: 1  # Füße, 靴, 👟\t."]
SAME = [
    *(replaced("seed: 1", text) for text in SEED),
    *(GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD, GOOD.rstrip("\n"), f"{GOOD}...\n"),
    *(json.dumps(TREE), json.dumps(dict(reversed(TREE.items())))),
    replaced("  - 256\n  - 128\n", "    [ 0x100, 128, ]\n"),
    replaced("activation: relu", 'activation: "\\u0072elu"'),
    replaced("arithmetic: exact", "arithmetic: >-\n  exact"),
]


@fault(
    "good values in odd forms: 1e-3, 1E5, 0.10, hexadecimal, CRLF, byte order mark, JSON",
    "read as they are meant, and as DVC reads them",
)
def test_odd_forms_are_read_as_dvc_reads_them(tmp_path: Path, times: Times) -> None:
    good, path = params.parse(GOOD).model_dump(), tmp_path / "params.yaml"
    assert good["mlp"]["hidden"] == (256, 128) and good["arithmetic"] == "exact"
    cases = [(replaced("lr: 0.03", f"lr: {text}"), {"lr": float(text)}) for text in LR]
    cases += [(replaced("seed: 1", f"seed: {text}"), {"seed": n}) for text, n in SEEDS.items()]
    cases += [(text, {}) for text in SAME]
    for text, changed in cases:
        path.write_bytes(text.encode())
        found, tree = params.load(path).model_dump(), loads_yaml(text)
        assert found == good | changed, text[:100]
        assert found == schema_of(tree).model_validate(tree).model_dump(), text[:100]
    times(len(cases))


ANY = ["null", "{}", "{a: 1}", "[[1]]", "2001-01-01"]
TEXT = ["'1'", "''", "fast", "'Füße'"]
NUMBER = ["true", "false", ".nan", ".inf", "-.inf", "1e400", "[1]", f"1{'0' * 400}"]
BAD: dict[type, list[str]] = {
    int: [*ANY, *TEXT, *NUMBER, "-1", "1.5", "1.0", "1e3", "-.0", str(2**63), str(-(2**63))],
    float: [*ANY, *TEXT, *NUMBER, "-1e7", "1e300", "1e7"],
    str: [*ANY, *TEXT, *NUMBER, "1", "RELU", "'exact '", "linear\\0"],
    list: [*ANY, *TEXT, "true", "1", "[]", "[null]", "[true]", "[.nan]", "[.inf]", "[1e300]"],
    dict: ["true", "1", "fast", "[]", "[1]", ".nan"],
}
OTHER = {"title": [*ANY, *NUMBER, "1", "''", "x" * 101], "sources": ["[]", "[1]", "'x'", "{}"]}
OTHER |= dict.fromkeys(("connect_timeout", "read_timeout", "deadline"), BAD[float])
# Values just beyond the limits, of the keys whose names end so.
BEYOND = {
    "seed": ["-1", str(2**63)],
    "lr": ["0", "-0.1"],
    "noise": ["-1"],
    "epochs": ["0", "10001"],
    "momentum": ["-.1", "1"],
    "weight_decay": ["-1e-9", "1.1"],
    "dropout": ["-.1", "1.0"],
    "hidden": ["[0]", "[65537]"],
    "weights": ["[1000001]"],
    "bias": ["1000001", "-1000001"],
    "deadline": ["0", "86401"],
    "bytes": ["0", str(2**26 + 1)],
    "fashion_mnist.validation": ["60000"],
} | {key: ["0", "1000001"] for key in ("train", "test", "validation", "batch_size")}
ACCEPTED = (
    r"(\.0)? = .*: expected (a valid (integer|number|string)|a finite number|a list|'\w+'"
    r"|a (section of keys|name, or a section|text that matches)|greater than|less than"
    r"|at (least|most) \d+ (item|character)|\w+ or \w+|sgd, adam|constant, linear)"
)


@fault(
    "each key and section with values of other types, NaN, infinity, negative, huge, out of range",
    HELD,
    CONTROL,
)
def test_every_key_refuses_wrong_values(refusal: Refusal, run_all: bool, times: Times) -> None:
    tried, draw = 0, random.Random(7)
    for keys, value in walk(TREE):
        text, path = edited(keys, {keys[-1]: "@@"}), ".".join(keys)
        wrong = OTHER.get(keys[-1], BAD[type(value)])
        wrong = wrong if run_all else draw.sample(wrong, 2)
        wrong = wrong + [v for k, values in BEYOND.items() if path.endswith(k) for v in values]
        for written in wrong:
            line = refusal(text.replace('"@@"', written))
            if "levels" not in line:  # a list within a list
                expected = re.escape(path.removesuffix(".name")) + ACCEPTED
                assert re.match(expected, line), f"{path}: {written}: {line}"
        tried += len(wrong)
    times(tried)


@fault("each key and section missing, misspelt, or there twice", HELD, CONTROL)
def test_every_key_is_there_once_and_spelt_right(refusal: Refusal, times: Times) -> None:
    optional, tried = ("download", "momentum", "weight_decay"), 0
    for keys, value in walk(TREE):
        *above, key = keys
        twice = refusal(edited(keys, {key: value, "@@": value}).replace("@@", key))
        assert re.fullmatch(rf'line \d+: expected YAML: found duplicate key "{key}".*', twice), key
        tried += 1
        if key in ("models", "name") or above[-1:] in (["models"], ["archives"]):
            continue  # which decide what else is accepted: see test_schema.py
        path = "".join(f"{part}." for part in above)
        if key not in optional:
            assert refusal(edited(keys, {})) == f"{path}{key}: this key is missing"
        misspelt = refusal(edited(keys, {key.upper(): value}))
        start, accepted = misspelt.removesuffix(" (and 1 more)").split("; accepted here: ")
        assert start == f"{path}{key.upper()}: unknown key"
        section = dict(walk(TREE))[tuple(above)] if above else TREE
        assert set(accepted.split(", ")) >= section.keys(), misspelt
        tried += 2
    times(tried)


MESSAGES = [
    ("train: 1000", "train: 2", "regression_data: expected train of at least 3"),
    ("  - 256\n  - 128\n", "    []\n", "mlp.hidden = []: expected at least 1 item, not 0"),
    ("models:", "models: []\nx:", "models = []: expected a section of keys and values"),
    ("models:", "model:", "models: this key is missing"),
    ("  mlp:", "  other:", "mlp: unknown key"),
    ("  mlp:", "  MLP:", "models.MLP = 'MLP': expected a text that matches ^[a-z]"),
    ("  mlp:", "  seed:", "the file: expected models without the reserved name seed"),
    ("  mlp:", "  training:", "the file: expected models without the reserved name training"),
    ("  mlp:", "  fashion_mnist:", "the file: expected models without the reserved name fash"),
    ("kind: mlp", "kind: cnn", "models.mlp.kind = 'cnn': expected linear or mlp"),
    ("kind: mlp", "kind: linear", "mlp.hidden: unknown key; accepted here: epochs, batch_size"),
    ("data: fashion", "data: x", "models.softmax_regression.data = 'x_mnist': expected fashion_mn"),
    ("task: regr", "task: class", "models.linear_regression.task = 'classession': expected 'regr"),
    ("task: regression", "task: classification", "models.linear_regression: expected regressio"),
    (": sgd", ": lion", "linear_regression.optimizer = 'lion': expected sgd, adam, adamw, rmsprop"),
    (": sgd", ": 3", "linear_regression.optimizer = 3: expected a name, or a section with a name"),
    ("name: sgd", "nam: sgd", "softmax_regression.optimizer = {'momentum': 0.9, 'nam': 'sgd'}: ex"),
    ("name: sgd", "name: adam", "softmax_regression.optimizer.momentum: unknown key; accepted"),
    (": sgd", ": {name: sgd, nesterov: true}", "linear_regression.optimizer: expected momentum"),
    ("constant", "{name: step, factor: 2}", "linear_regression.lr_schedule.factor = 2: expected"),
    ("train-images", "a/b", "download.archives.a/b-idx3-ubyte.gz = 'a/b-idx3-ubyte.gz': expected"),
]


def test_the_message_names_the_value_and_what_is_accepted(refusal: Refusal) -> None:
    for old, new, message in MESSAGES:
        assert refusal(replaced(old, new)).startswith(message), new


NOISE = random.Random(1).randbytes(1000)
NO_SECTION = "the file = .*: expected a section of keys and values"
NO_TEXT = "expected text in UTF-8"
NO_YAML = r"line \d+: expected YAML"
NO_NAME = ".*: expected the name of a parameter as key"
# A message, and the files that it is for.
FILES: list[tuple[str, list[str | bytes]]] = [
    (NO_SECTION, ["", "\n", "# seed: 1\n", "null", "seed", "- seed: 1", "<html>Moved</html>"]),
    (NO_TEXT, [NOISE, b"\x89PNG\r\n\x1a\n" + NOISE, b"\x1f\x8b\x08\x00" + NOISE]),
    (NO_TEXT, [GOOD.encode("utf-16"), "# Füße".encode("latin-1"), "# Fuß".encode()[:-1]]),
    (r"regression_data: this key is missing \(and 4 more\)", [GOOD[: GOOD.index("  hidden")]]),
    (r"mlp\.hidden = ", [replaced("  - 256\n  - 128", "    256, 128")]),
    (r"mlp\.dropout: unknown key; accepted here", [f"mlp.dropout: 0.5\n{GOOD}"]),
    (NO_NAME, [f"1: 2\n{GOOD}", f": 2\n{GOOD}", f"? [a, b]\n: 2\n{GOOD}"]),
    (NO_YAML + ": but found another", [f"{GOOD}---\n{GOOD}", f"{GOOD}...\nseed: 2\n"]),
    (NO_YAML + r": found character '\\t'", [GOOD.replace("  ", "\t")]),
    (NO_YAML + ": found incompat", [f"%YAML 2.0\n---\n{GOOD}"]),
    (NO_YAML + ": found unhashable key", [f"? {{a: b}}\n: 2\n{GOOD}"]),
    (NO_YAML, [replaced("seed: 1", "<<<<<<< HEAD\nseed: 1\n=======\nseed: 2"), GOOD[:-70]]),
    # errors of ruamel.yaml that are not its own, or name no line
    (NO_YAML, [f"%YAML 1.1\n---\n{replaced('seed: 1', 'seed: -_')}"]),
    ("expected YAML: version", [f"%YAML 1.3\n---\n{GOOD}"]),
    ("expected YAML: unhashable", [f"? [{{a: 1}}]\n: 2\n{GOOD}"]),
    ("line 4: expected YAML: month must be in", [replaced("lr: 0.03", "lr: 2001-99-99")]),
    # keys that a terminal obeys, or that fill it
    (r"'?\\x1b\[2Jseed'?: unknown key", [f'"\\e[2Jseed": 1\n{GOOD}']),
    ("'kkk.*kkk': unknown key", [f"? {'k' * 5000}\n: 1\n{GOOD}"]),
]
SEED_LINES = [
    (NO_YAML, ["seed: [1", "seed: '1", "seed:1", "seed = 1", "seed: @1", "seed: -"]),
    ("seed = 'xxx.*xxx': expected", [f"seed: {'x' * 60_000}"]),
    ("line 2: expected YAML: invalid literal", ["seed: 0x_"]),
    ("line 2: expected YAML: Exceeds the", [f"seed: 1{'0' * 5000}"]),
    ("line 2: expected YAML: unacceptable character #x00", ["seed: 1\0", "seed: 1 # \x07"]),
]


FILES += [(why, [replaced("seed: 1", line) for line in lines]) for why, lines in SEED_LINES]


@fault(
    "a file that is empty, binary, cut, two documents, with tabs, or something else;"
    " what ruamel.yaml fails on with other errors; keys that a terminal obeys",
    HELD,
    CONTROL,
)
def test_files_without_parameters_are_refused(refusal: Refusal, times: Times) -> None:
    times(require_each(refusal, FILES))


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
    times(require_each(refusal, EXPLOSIONS))


def test_good_files_pass_and_aliases_would_without_the_check(
    in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    LOCK.unlink()
    for contents in (GOOD, ALIAS_OF_A_NUMBER):
        FILE.write_text(contents)
        before = snapshot()
        done = in_process(train, "mlp")
        assert done.stderr.startswith("error: data/fashion_mnist/train.safetensors: cannot be read")
        assert done.returncode == 1 and snapshot() == before
        monkeypatch.setattr(params._Parser, "get_event", Parser.get_event)


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
    times(require_each(refusal, [(TAG, texts)]))  # which also finds that there is no canary
    importlib.import_module("yaml").unsafe_load(TAGS[0])  # the control
    assert Path("canary").exists()


@fault("no file, or a folder, link, socket or pipe", HELD, CONTROL)
@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_special_files_are_refused(refusal: Refusal, kind: str) -> None:
    make, expected = SPECIAL_FILES[kind]
    make(FILE)
    assert re.match(f"cannot be read: .*({expected})", refusal())


@fault(
    "a mistake of each class, by tools.repair, also with --damaged",
    "one line, exit code 2, nothing repaired, removed or written",
    "with a good file the half-written rwlock and the damaged object are removed",
)
@pytest.mark.slow
def test_nothing_is_repaired_with_bad_parameters(
    refusal: Refusal, in_process: Program, run_all: bool, times: Times
) -> None:
    mistakes: list[tuple[str, list[Any]]] = [*FILES, *EXPLOSIONS, (TAG, TAGS)]
    mistakes = mistakes if run_all else random.Random(7).sample(mistakes, 10)
    for options in ((), ("--damaged",)):
        for expected, (contents, *_) in mistakes:
            assert re.match(expected, refusal(contents, repair, *options))
    times(2 * len(mistakes))
    FILE.write_text(GOOD)  # the control
    LOCK.unlink()
    assert in_process(repair, "--damaged").returncode == 0
    assert not RWLOCK.exists() and not OBJECT.exists() and OUTPUT.exists()
