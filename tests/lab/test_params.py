"""Good parameters are read as they are meant. Bad ones are refused in one line."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml
from pydantic import ValidationError
from ruamel.yaml import YAML

from lab import params
from lab.schema import schema_of
from tracking.repository import ROOT

fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "7. Parameters")
HELD = "one line that names the key, line or file, and what is accepted"
CONTROL = "a good file is accepted"
GOOD = (ROOT / "tests/params.yaml").read_text(encoding="utf-8")
TREE: dict[str, Any] = YAML(typ="safe", pure=True).load(GOOD)
Keys = tuple[str, ...]
Refusal = Callable[[str | bytes], str]
Times = Callable[[int], None]


def replaced(old: str, new: str) -> str:
    """The good file with one change."""
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def walk(section: dict[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Each key of the file, after those of the sections that it is in, and its value."""
    for key, value in section.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from walk(value, (*above, key))


def edited(keys: Keys, entries: dict[str, Any]) -> str:
    """The good file as JSON, with other entries in place of a key."""
    section = tree = copy.deepcopy(TREE)
    for key in keys[:-1]:
        section = section[key]
    del section[keys[-1]]
    section.update(entries)
    return json.dumps(tree)


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """A function that reads a bad file and returns the error message, which must be one line."""
    monkeypatch.chdir(tmp_path)

    def message(contents: str | bytes) -> str:
        encoded = contents if isinstance(contents, bytes) else contents.encode()
        Path("params.yaml").write_bytes(encoded)
        with pytest.raises(params.ParamsError) as error:
            params.load()
        line = str(error.value)
        assert line.startswith("params.yaml: ") and line.isprintable() and len(line) < 400
        return line.removeprefix("params.yaml: ")

    return message


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
        wrong = wrong if run_all else draw.sample(wrong, 3)
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
    (
        "  mlp:",
        "  fashion_mnist:",
        "the file: expected models without the reserved name fashion",
    ),
    ("kind: mlp", "kind: cnn", "models.mlp.kind = 'cnn': expected linear or mlp"),
    ("kind: mlp", "kind: __init__", "models.mlp.kind = '__init__': expected linear or mlp"),
    ("kind: mlp", "kind: linear", "mlp.hidden: unknown key; accepted here: epochs, batch_size"),
    ("data: fashion", "data: x", "models.softmax_regression.data = 'x_mnist': expected fashion_mn"),
    ("task: regr", "task: class", "models.linear_regression.task = 'classession': expected 'regr"),
    (
        "task: regression",
        "task: classification",
        "models.linear_regression: expected regression as",
    ),
    (": sgd", ": lion", "linear_regression.optimizer = 'lion': expected sgd, adam, adamw, rmsprop"),
    (": sgd", ": 3", "linear_regression.optimizer = 3: expected a name, or a section with a name"),
    ("name: sgd", "nam: sgd", "softmax_regression.optimizer = {'momentum': 0.9, 'nam': 'sgd'}: ex"),
    (
        "name: sgd",
        "name: adam",
        "softmax_regression.optimizer.momentum: unknown key; accepted here",
    ),
    (": sgd", ": {name: sgd, nesterov: true}", "linear_regression.optimizer: expected momentum"),
    ("constant", "{name: step, factor: 2}", "linear_regression.lr_schedule.factor = 2: expected"),
    (
        "train-images",
        "a/b",
        "download.archives.a/b-idx3-ubyte.gz = 'a/b-idx3-ubyte.gz': expected a",
    ),
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


@fault(
    "a file that is empty, binary, cut, two documents, with tabs, or something else;"
    " what ruamel.yaml fails on with other errors; keys that a terminal obeys",
    HELD,
    CONTROL,
)
def test_files_without_parameters_are_refused(refusal: Refusal, times: Times) -> None:
    cases = [(expected, contents) for expected, files in FILES for contents in files]
    cases += [(why, replaced("seed: 1", line)) for why, lines in SEED_LINES for line in lines]
    for expected, contents in cases:
        assert re.match(expected, line := refusal(contents)), f"{contents[:100]!r}: {line}"
    times(len(cases))
