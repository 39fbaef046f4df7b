"""Good parameters are read as they are meant. Bad ones are refused in one line."""

import copy
import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml
from pydantic import ValidationError
from ruamel.yaml import YAML

from benchmarks.clones import ROOT
from lab import params

fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "7. Parameters")
HELD = "one line that names the key, line or file, and what is accepted"
CONTROL = "a good file is accepted"
FILE = ROOT / "tests/params.yaml"
GOOD = FILE.read_text(encoding="utf-8")
TREE: dict[str, Any] = YAML(typ="safe", pure=True).load(GOOD)
SECTIONS = {"": TREE} | {key: value for key, value in TREE.items() if isinstance(value, dict)}
Load = Callable[[str | bytes], params.Params]
Refusal = Callable[[str | bytes], str]
Times = Callable[[int], None]


def replaced(old: str, new: str) -> str:
    """The good file with one change."""
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def edited(section: str, key: str, entries: dict[str, Any]) -> str:
    """The good file as JSON, with other entries in place of a key of this section."""
    tree = copy.deepcopy(TREE)
    entries_of = tree[section] if section else tree
    del entries_of[key]
    entries_of.update(entries)
    return json.dumps(tree)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A function that reads a file with these contents."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(contents: str | bytes) -> params.Params:
        encoded = contents if isinstance(contents, bytes) else contents.encode()
        Path("params.yaml").write_bytes(encoded)
        return params.load()

    return write_and_load


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """A function that reads a bad file and returns the error message, which must be one line."""

    def message(contents: str | bytes) -> str:
        try:
            load(contents)
        except params.ParamsError as error:
            line = str(error)
            assert line.startswith("params.yaml: ") and line.isprintable() and len(line) < 400
            return line.removeprefix("params.yaml: ")
        pytest.fail(f"accepted: {contents[:100]!r}")

    return message


def test_the_committed_file_is_good() -> None:
    params.load(ROOT / "params.yaml")


def test_parameters_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.load(FILE).lr = 1.0  # type: ignore[misc]


def test_a_run_logs_the_parameters_of_its_model() -> None:
    p = params.load(FILE)
    assert p.seen_by("linear_regression").keys() == {
        *("seed", "lr", "arithmetic"),
        *TREE["linear_regression"],
        *(f"regression_data.{key}" for key in TREE["regression_data"]),
    }
    differences = p.seen_by("mlp").keys() - p.seen_by("softmax_regression").keys()
    assert differences == {"hidden", "activation", "dropout"}


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
def test_odd_forms_are_read_as_dvc_reads_them(load: Load, times: Times) -> None:
    good = params.parse(GOOD)
    assert good.mlp.hidden == (256, 128) and good.mlp.lr_schedule == "linear"
    cases = [(replaced("lr: 0.03", f"lr: {text}"), {"lr": float(text)}) for text in LR]
    cases += [(replaced("seed: 1", f"seed: {text}"), {"seed": n}) for text, n in SEEDS.items()]
    cases += [(text, {}) for text in SAME]
    for text, changed in cases:
        found = load(text)
        assert found == good.model_copy(update=changed), text[:100]
        assert found == params.Params.model_validate(loads_yaml(text)), text[:100]
    times(len(cases))


ANY = ["null", "{}", "{a: 1}", "[[1]]", "2001-01-01", "'1'", "''", "fast", "'Füße'"]
NUMBER = ["true", "false", ".nan", ".inf", "-.inf", "1e400", "[1]", f"1{'0' * 400}"]
BAD: dict[type, list[str]] = {
    int: [*ANY, *NUMBER, "-1", "1.5", "1.0", "1e3", "-.0", str(2**63), str(-(2**63))],
    float: [*ANY, *NUMBER, "-1e7", "1e300", "1e7"],
    str: [*ANY, *NUMBER, "1", "RELU", "'exact '", "linear\\0"],
    list: [*ANY, "true", "1", "[]", "[null]", "['1']", "[true]", "[.nan]", "[.inf]", "[1e300]"],
    dict: ["null", "true", "1", "fast", "[]", "[1]", ".nan"],
}
# Values just beyond the limits.
BEYOND = {
    "seed": ["-1", str(2**63)],
    "lr": ["0", "-0.1"],
    "noise": ["-1"],
    "train": ["0", "1000001"],
}
BEYOND |= {"validation": ["0", "1000001"], "epochs": ["0", "10001"], "batch_size": ["0", "1000001"]}
BEYOND |= {"momentum": ["-.1", "1"], "weight_decay": ["-1e-9", "1.1"], "dropout": ["-.1", "1.0"]}
BEYOND |= {"hidden": ["[0]", "[65537]"], "weights": ["[1000001]"], "bias": ["1000001", "-1000001"]}
BEYOND |= {"fashion_mnist.validation": ["60000"], "test": ["0", "1000001"]}
ACCEPTED = (
    r"(\.0)? = .*: expected (a valid (integer|number)|a finite number|a list|a section of keys"
    r"|'\w+'|greater than|less than|at (least|most) \d+ item)"
)


@fault(
    "each key and section with values of other types, NaN, infinity, negative, huge, out of range",
    HELD, CONTROL,
)  # fmt: skip
def test_every_key_refuses_wrong_values(refusal: Refusal, run_all: bool, times: Times) -> None:
    tried, draw = 0, random.Random(7)
    for name, section in SECTIONS.items():
        for key, value in section.items():
            text, path = edited(name, key, {key: "@@"}), f"{name}.{key}".lstrip(".")
            wrong = BAD[type(value)] if run_all else draw.sample(BAD[type(value)], 5)
            wrong = wrong + BEYOND.get(key, []) + BEYOND.get(path, []) * (path != key)
            for written in wrong:
                line = refusal(text.replace('"@@"', written))
                assert re.match(re.escape(path) + ACCEPTED, line), f"{written}: {line}"
            tried += len(wrong)
    times(tried)


@fault("each key and section missing, misspelt, or there twice", HELD, CONTROL)
def test_every_key_is_there_once_and_spelt_right(refusal: Refusal, times: Times) -> None:
    keys = [(name, key) for name, section in SECTIONS.items() for key in section]
    for name, key in keys:
        path, value = f"{name}." if name else "", SECTIONS[name][key]
        assert refusal(edited(name, key, {})) == f"{path}{key}: this key is missing"
        misspelt = refusal(edited(name, key, {key.upper(): value}))
        accepted = f"unknown key; accepted here: {', '.join(SECTIONS[name])} (and 1 more)"
        assert misspelt == f"{path}{key.upper()}: {accepted}"
        twice = refusal(edited(name, key, {key: value, "@@": value}).replace("@@", key))
        assert re.fullmatch(rf'line \d+: expected YAML: found duplicate key "{key}".*', twice), key
    times(3 * len(keys))


MESSAGES = [
    ("seed: 1", "seed: true", "seed = True: expected a valid integer"),
    ("lr: 0.03", "lr: .nan", "lr = nan: expected a finite number"),
    ("lr: 0.03", "lr: 0", "lr = 0: expected greater than 0"),
    ("train: 1000", "train: 2", "regression_data: expected train of at least 3"),
    ("- 2.0\n", "- two\n", "regression_data.weights.0 = 'two': expected a valid number"),
    ("linear_regression:", "linear_regression: 3\nx:", "x: unknown key"),
    ("  - 256\n  - 128\n", "    []\n", "mlp.hidden = []: expected at least 1 item, not 0"),
    ("  - 256\n  - 128\n", "    256\n", "mlp.hidden = 256: expected a list"),
    ("relu", "gelu", "mlp.activation = 'gelu': expected 'relu', 'sigmoid' or 'tanh'"),
    ("dropout: 0.0", "dropout: 1", "mlp.dropout = 1: expected less than 1"),
]


def test_the_message_says_which_value_and_what_is_accepted(refusal: Refusal) -> None:
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
    (NO_SECTION, ["import os\nos.remove('x')\n", "--- a\n+++ b\n@@ -1 +1 @@\n"]),
    (NO_TEXT, [NOISE, b"\x89PNG\r\n\x1a\n" + NOISE, b"\x1f\x8b\x08\x00" + NOISE]),
    (NO_TEXT, [GOOD.encode("utf-16"), "# Füße".encode("latin-1"), "# Fuß".encode()[:-1]]),
    (r"seed: this key is missing \(and 7 more\)", ["{}"]),
    (r"mlp\.hidden: this key is missing", [GOOD[: GOOD.index("  hidden")]]),
    (r"mlp\.hidden = ", [replaced("  - 256\n  - 128", "    256, 128")]),
    (r"mlp\.dropout: unknown key; accepted here", [f"mlp.dropout: 0.5\n{GOOD}"]),
    (NO_NAME, [f"1: 2\n{GOOD}", f": 2\n{GOOD}", f"? [a, b]\n: 2\n{GOOD}"]),
    (NO_YAML + ": but found another", [f"{GOOD}---\n{GOOD}", f"{GOOD}...\nseed: 2\n"]),
    (NO_YAML + r": found character '\\t'", [GOOD.replace("  ", "\t")]),
    (NO_YAML + ": found incompat", [f"%YAML 2.0\n---\n{GOOD}"]),
    (NO_YAML + ": found unhashable key", [f"? {{a: b}}\n: 2\n{GOOD}"]),
    (NO_YAML + ": expected a mapping", [f"<<: 1\n{GOOD}"]),
    (NO_YAML, [replaced("  epochs", text) for text in ("\tepochs", "   epochs")]),
    (NO_YAML, [replaced("seed: 1", "<<<<<<< HEAD\nseed: 1\n=======\nseed: 2"), GOOD[:-10]]),
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
    HELD, CONTROL,
)  # fmt: skip
def test_files_without_parameters_are_refused(refusal: Refusal, times: Times) -> None:
    cases = [(expected, contents) for expected, files in FILES for contents in files]
    cases += [(why, replaced("seed: 1", line)) for why, lines in SEED_LINES for line in lines]
    for expected, contents in cases:
        assert re.match(expected, line := refusal(contents)), f"{contents[:100]!r}: {line}"
    times(len(cases))
