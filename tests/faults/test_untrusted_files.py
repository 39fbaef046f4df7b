"""Untrusted files are refused in one line: no code in them runs, and nothing is written.

A canary is a folder that exists as soon as code in an untrusted file has run.
"""

import ast
import io
import json
import math
import os
import pickle
import random
import re
import runpy
import struct
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from lab import checkpoints, networks
from lab.common import files
from lab.common.files import InputError
from lab.datasets import Examples, fashion_mnist, regression_data
from lab.models.mlp import MLP
from stages import evaluate
from tests.conftest import Program, contents
from tracking.repository import ROOT

fault = partial(pytest.mark.fault.with_args, "8. Untrusted files")
ONE_LINE = "refused in one line, without a warning (a checkpoint: ignored)"
NAME = "truth.json"  # of every file, as one of the readers knows it by this name
MODEL = Path("results/mlp/model.safetensors")
Times = Callable[[int], None]


class Canary:
    """An object that makes the folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def torch_file(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weights": Canary(canary)}, file)
    return file.getvalue()


def whole_model(
    weight: np.ndarray[Any, Any], bias: list[float], inputs: tuple[int, ...] = (1, 28, 28)
) -> bytes:
    """A file that networks.load accepts, of a model with one layer."""
    shape = {"inputs": inputs, "outputs": len(bias)}
    description = json.dumps({"kind": "linear", "architecture": {}, "shape": shape})
    tensors = {"output.weight": weight.astype("f4"), "output.bias": np.array(bias, "f4")}
    return safetensors.numpy.save(tensors, {"model": description})


def model_and_program(canary: Path) -> bytes:
    """A whole model whose weights are also a zip archive that Python runs as a program."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("__main__.py", f"import os; os.mkdir({str(canary)!r})")
    for shift in range(4):  # until no four bytes of it are NaN or infinity
        contents = file.getvalue().rjust(4 * 7840 - shift, b"\0") + bytes(shift)
        weight = np.frombuffer(contents, "<f4").reshape(10, 784)
        if np.isfinite(weight).all():
            break
    return whole_model(weight, [0.0] * 10)


POLYGLOT = "a whole model that is also a program"  # which is accepted as numbers
# How such a file is made, and what runs the code in it.
CARRIERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    "a pickle": (lambda canary: pickle.dumps(Canary(canary)), pd.read_pickle),
    "a file of torch.save": (torch_file, partial(torch.load, weights_only=False)),
    POLYGLOT: (model_and_program, lambda path: runpy.run_path(str(path))),
}


def with_header(contents: bytes, old: str, new: str) -> bytes:
    """The safetensors file with another text in its header."""
    size = int.from_bytes(contents[:8], "little")
    header, data = contents[8 : 8 + size].decode(), contents[8 + size :]
    assert old in header
    header = header.replace(old, new)
    return struct.pack("<Q", len(header)) + header.encode() + data


METADATA, HIDDEN, KIND = '"__metadata__":', r"\"hidden\": [16,", r"\"kind\": \"mlp\""
BIAS = '"output.bias":{"dtype":"F32","shape":['
I8 = '{"dtype":"I8","shape":[3],"data_offsets":[0,3]}'
HEADERS = {  # what is replaced in the header by what
    "a tensor twice": (BIAS, f'"output.bias":{I8},{BIAS}'),
    "a tensor of 2**62 numbers": (BIAS, f"{BIAS}{2**62},"),
    "another dtype": ('"F32"', '"I32"'),
    "a tensor too many, named in control characters": (METADATA, rf'"\u001b[2J":{I8},{METADATA}'),
    "no description": (METADATA, '"output":'),
    "another kind": (KIND, KIND.replace("mlp", "linear")),
    "a path as kind": (KIND, KIND.replace("mlp", "../networks")),
    "another width": ("[16, 8]", "[16, 9]"),
    "inputs of 2**64 numbers": ("[20]", f"{[65536] * 4}"),
    "a huge width": (HIDDEN, HIDDEN + "65536," * 62),
    "a function as activation": ("tanh", "os.system"),
    "an unknown key": (r"\"hidden\"", r"\"loader\":\"os.system\",\"hidden\""),
}
MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in the data": lambda model: model[:-1],
    "a byte too many": lambda model: model + b"\0",
    "a length of 2**64 - 1": lambda model: b"\xff" * 8 + model[8:],
    "a header without end": lambda model: struct.pack("<Q", 500_000) + b'{"a":' * 100_000 + model,
    "NaN": lambda model: model[:-4] + struct.pack("<f", math.nan),
    **{kind: partial(with_header, old=old, new=new) for kind, (old, new) in HEADERS.items()},
}


def is_model(model: networks.Model) -> bool:
    parameters, shape = model.network.parameters(), model.shape
    finite = all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in parameters)
    return finite and model.predict(torch.zeros(1, *shape.inputs)).shape == (1, shape.outputs)


def are_images(found: tuple[torch.Tensor, torch.Tensor]) -> bool:
    images, labels = found
    types = images.dtype, labels.dtype
    same = images.shape == (len(labels), 28, 28) and types == (torch.uint8, torch.int64)
    return same and set(labels.tolist()) <= set(range(10))


def are_examples(found: Examples) -> bool:
    features, targets = found
    return targets.shape == (len(features), 1) and bool(torch.isfinite(torch.cat(found, 1)).all())


def read_checkpoint(path: Path) -> checkpoints.Saved:
    """The checkpoint. A training ignores one that is damaged."""
    if saved := checkpoints.Checkpoint(path).saved:
        return saved
    raise InputError(f"{path}: ignored")


def is_checkpoint(saved: checkpoints.Saved) -> bool:
    """Whether it is the one that was written: spaces in the header, say, change nothing."""
    numbers = [{name: t.tolist() for name, t in d.items()} for d in (saved.tensors, TENSORS)]
    return saved.state == STATE and numbers[0] == numbers[1]


IMAGES = {"images": torch.zeros(5, 28, 28, dtype=torch.uint8), "labels": torch.arange(5)}
TABLE = [{"epoch": float(i), "loss": 0.1 * i} for i in range(1, 6)]
POINTS = Examples(torch.arange(20).view(10, 2) / 7, torch.arange(10).view(10, 1) / 3)
TENSORS = {"network/output.weight": torch.ones(3, 3), "optimizer/0/momentum": torch.zeros(3)}
STATE = {"at": {"epoch": 3}, "groups": [1]}
TRUTH = regression_data.RegressionData(
    train=5, validation=1, test=1, weights=(2.0, -3.4), bias=4.2, noise=0.0
)
FLOAT = {np.dtype(float)}
# Functions that read files, and what is true of all that they return.
READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], object]]] = {
    "networks.load": (networks.load, is_model),
    "fashion_mnist.read_images": (fashion_mnist.read_images, are_images),
    "regression_data.read_table": (regression_data.read_table, are_examples),
    "regression_data.true_weights": (
        lambda path: TRUTH.true_weights(path.parent),
        lambda w: np.isfinite(w).all(),
    ),
    "files.read_csv": (files.read_csv, lambda rows: set(pd.DataFrame(rows).dtypes) <= FLOAT),
    "files.read_json": (files.read_json, json.dumps),
    "files.read_tensors": (files.read_tensors, lambda t: all(map(torch.is_tensor, t[0].values()))),
    "checkpoints.Checkpoint": (read_checkpoint, is_checkpoint),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder for each reader, under its name, with a good file."""
    architecture = MLP(hidden=(16, 8), activation="tanh", dropout=0.5)
    model = networks.build("mlp", architecture, torch.zeros(1, 20), 3, 1)
    model.save(tmp_path / "networks.load" / NAME)
    files.write_tensors(tmp_path / "fashion_mnist.read_images" / NAME, IMAGES)
    regression_data.write_table(tmp_path / "regression_data.read_table" / NAME, POINTS)
    files.write_json(
        tmp_path / "regression_data.true_weights" / NAME, {"weights": [2.0, -3.4], "bias": 4.2}
    )
    files.write_csv(tmp_path / "files.read_csv" / NAME, TABLE)
    files.write_json(tmp_path / "files.read_json" / NAME, {"epochs": TABLE, "note": [None, "x"]})
    files.write_tensors(tmp_path / "files.read_tensors" / NAME, IMAGES)
    checkpoints.Checkpoint(tmp_path / "checkpoints.Checkpoint" / NAME).save(TENSORS, STATE)
    return tmp_path


def is_refused(reader: str, path: Path) -> bool:
    """Whether the reader refuses the file, in one line. If not, what it returns is valid."""
    read, valid = READERS[reader]
    start = time.process_time()
    try:
        value = read(path)
    except InputError as error:
        line = str(error)
        assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < 10_000, line
        assert "allocate" not in line  # it is refused before memory is exhausted
        return True
    finally:
        assert time.process_time() - start < 5
    assert valid(value)
    return False


@fault(
    "{kind}, given to every function that reads files",
    "no code runs: the file is refused in one line, or read as numbers",
    "the function that the file is made for runs the code",
)
@pytest.mark.parametrize("kind", CARRIERS)
def test_no_reader_runs_the_code_in_a_file(tmp_path: Path, kind: str, times: Times) -> None:
    path, canary = tmp_path / NAME, tmp_path / "canary"
    make, run_code = CARRIERS[kind]
    path.write_bytes(make(canary))
    run_code(path)
    assert canary.is_dir()
    canary.rmdir()
    accepted = {reader for reader in READERS if not is_refused(reader, path)}
    assert accepted == ({"files.read_tensors", "networks.load"} if kind == POLYGLOT else set())
    assert not canary.exists()
    times(len(READERS))


@fault(
    "models that are cut, name a tensor twice, hold NaN, or have wrong dtypes, shapes or sizes"
    " of up to 2**64, with memory for 512 MiB more",
    ONE_LINE,
    "the file is read before it is changed; a tensor of 8 GiB cannot be allocated",
)
@pytest.mark.usefixtures("little_memory")
def test_a_malformed_model_is_refused(good: Path, times: Times) -> None:
    path = good / "networks.load" / NAME
    with pytest.raises(RuntimeError, match="allocate"):
        torch.empty(2**31)
    assert not is_refused("networks.load", path)
    contents = path.read_bytes()
    for kind, change in MALFORMED.items():
        path.write_bytes(change(contents))
        assert is_refused("networks.load", path), kind
    times(len(MALFORMED))


@fault("JSON 100,000 levels deep, as a file and in a checkpoint", ONE_LINE, "a few levels are read")
def test_json_of_too_many_levels_is_refused(tmp_path: Path, times: Times) -> None:
    path = tmp_path / NAME
    path.write_text('{"a": [[[1]]]}')
    assert files.read_json(path) == {"a": [[[1]]]}
    for start in ("[", '{"a":', '{"weights":['):
        path.write_text(start * 100_000)
        assert is_refused("files.read_json", path)
        assert is_refused("regression_data.true_weights", path)
        for key, reader in (("checkpoint", "checkpoints.Checkpoint"), ("model", "networks.load")):
            files.write_tensors(path, TENSORS, (key, start * 100_000))
            assert is_refused(reader, path)
    times(12)


TEXTS = b'- [ { " NaN null , 1e999 \\u0000 F8_E4M3 BOOL \xff \xe2\x80\xa8 99999999999'.split(b" ")
TEXTS += [b"\n", b"\r", b"\0"]


def damaged(contents: bytes, draw: random.Random) -> bytes:
    """Bits flipped, bytes removed or inserted, most often at the beginning, where sizes are."""
    found = bytearray(contents)
    for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
        at = draw.randrange(1 + min(len(found), draw.choice((400, len(contents)))))
        flipped = bytes(byte ^ 1 << draw.randrange(8) for byte in found[at : at + 1])
        inserted = draw.choice((draw.choice(TEXTS), draw.randbytes(draw.choice((1, 4, 100)))))
        removed = draw.choice((1, 2, 8, 30, len(found)))
        end, new = draw.choice(((at + 1, flipped), (at, inserted), (at + removed, b"")))
        found[at:end] = new
    return bytes(found)


@fault(
    "random bytes flipped, removed or inserted in a file for {name}",
    f"{ONE_LINE}, or read as a valid value",
    "the file before is read",
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_gives_a_valid_value(
    good: Path, name: str, run_all: bool, times: Times
) -> None:
    path = good / name / NAME
    assert not is_refused(name, path)
    contents, number, refused = path.read_bytes(), 5000 if run_all else 300, 0
    for seed in range(number):
        path.write_bytes(damaged(contents, random.Random(f"{name} {seed}")))
        refused += is_refused(name, path)
    assert refused > number / 4
    times(number)


IMPORTS = r"_?c?pickle|dill|cloudpickle|joblib|shelve|marshal|yaml|runpy|code"
DANGER = re.compile(
    rf"^ *(import|from) (\w+, )*({IMPORTS})\b"
    r"|^ *from .* import .*\b(load|read_pickle|system|popen|import_module)\b"
    r"|\b(torch|jit|hub|np|numpy)\.load\(|\b(read_pickle|import_module|load_model)\("
    r"|(?<![.\w])(?<!def )(eval|exec|compile|__import__)\(|\bos\.(system|popen)\("
    r"|\b(allow_pickle|shell|weights_only)=|\bYAML\((?!typ='safe')",
    re.MULTILINE | re.IGNORECASE,
)
DANGEROUS = """import pickle; from joblib import load; torch.load('x'); eval('1'); import os, yaml
from torch import nn, load; exec(code); np.load(x, allow_pickle=True); YAML(); YAML(typ="unsafe")
import yaml; subprocess.run(x, shell = True); pd.read_pickle(x)"""


# They load modules of their own folders alone.
LOADERS = ("lab/common/settings.py", "exact/operations/__init__.py")


@fault(
    "the code's files are searched for pickle, torch.load, eval, shell and the like",
    "none is found",
    "a line of code with one of these is found",
)
def test_no_code_of_the_project_runs_what_it_reads(times: Times) -> None:
    for statement in ast.parse(DANGEROUS).body:
        assert DANGER.search(ast.unparse(statement)), ast.unparse(statement)
    assert not DANGER.search("model.eval(); YAML(typ='safe', pure=True); json.loads(x)")
    folders = ("exact", "lab", "stages", "tracking", "tools")
    paths = [path for folder in folders for path in (ROOT / folder).glob("**/*.py")]
    paths = [path for path in paths if path.parent.name not in ("tests", "examples")]
    assert len(paths) > 20
    for path in paths:
        text = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        if path.relative_to(ROOT).as_posix() in LOADERS:
            text = text.replace("importlib.import_module(", "")
        assert not DANGER.search(text), path
    times(len(paths))


@fault(
    "an untrusted model given to `python -m stages.evaluate mlp`: not a model, of other sizes, or"
    " with outputs that overflow",
    "exit code 1, one line; no code runs; the old results as they were",
    "the trained model is evaluated to the same bytes",
)
@pytest.mark.slow
@pytest.mark.usefixtures("clone")
def test_evaluate_refuses_an_untrusted_model_and_keeps_the_old_results(
    in_process: Program, tmp_path: Path, times: Times
) -> None:
    Path("dvc.lock").unlink()  # by which the stage would see that the model has changed
    trained, canary = MODEL.read_bytes(), tmp_path / "canary"
    refused = {
        "a pickle": pickle.dumps(Canary(canary)),
        "a tensor twice": MALFORMED["a tensor twice"](trained),
        "other inputs": whole_model(np.zeros((10, 785)), [0.0] * 10, (785,)),
        "too few outputs": whole_model(np.zeros((3, 784)), [0.0] * 3),
        "too many outputs": whole_model(np.zeros((12, 784)), [0.0] * 12),
        "overflow in the outputs": whole_model(np.full((10, 784), 3e38), [0.0] * 10),
        "overflow in the loss": whole_model(np.zeros((10, 784)), [3e38, *[-3e38] * 9]),
    }
    before = contents(Path("results"))
    assert in_process(evaluate, "mlp").returncode == 0
    assert contents(Path("results")) == before
    for kind, model in refused.items():
        MODEL.write_bytes(model)
        done = in_process(evaluate, "mlp")
        assert done.returncode == 1 and not done.stdout, kind
        assert re.fullmatch("error: .{,9990}\n", done.stderr), done.stderr
        assert done.stderr[:-1].isprintable(), done.stderr
        assert contents(Path("results")) == before | {"mlp/model.safetensors": model}, kind
        assert not canary.exists()
    times(len(refused))
