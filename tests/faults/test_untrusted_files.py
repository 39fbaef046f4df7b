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
import resource
import runpy
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.numpy
import torch

from benchmarks.clones import ROOT
from lab import checkpoints, datasets, files, models
from lab.files import InputError
from lab.models import Architecture
from stages import evaluate
from tests.conftest import Clone, Program

fault = partial(pytest.mark.fault.with_args, "8. Untrusted files")
ONE_LINE = "refused in one line, without a warning (a checkpoint: ignored)"
MLP = Architecture(inputs=20, outputs=3, hidden=(16, 8), activation="tanh", dropout=0.5)
MODEL = Path("results/mlp/model.safetensors")
Times = Callable[[int], None]


class Canary:
    """An object that makes the folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def torch_file(canary: Path, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save({"weights": Canary(canary)}, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def numpy_file(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def with_zip(contents: bytes, members: dict[str, bytes]) -> bytes:
    """The file with a zip archive after it."""
    file = io.BytesIO(contents)
    with zipfile.ZipFile(file, "a") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def program(canary: Path) -> bytes:
    return with_zip(b"", {"__main__.py": f"import os; os.mkdir({str(canary)!r})".encode()})


def torch_and_safetensors(canary: Path) -> bytes:
    """A file in both formats: the first bytes, safetensors' length, are those of a zip archive."""
    length = int.from_bytes(b"PK\x03\x04", "little")
    inner = zipfile.ZipFile(io.BytesIO(torch_file(canary)))
    contents = b""
    for _ in range(2):  # the first time to learn the archive's size
        size = max(len(contents) - length - 8, 0)
        header = {"archive": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        text = struct.pack("<Q", length) + json.dumps(header).encode().ljust(length)
        contents = with_zip(text, {name: inner.read(name) for name in inner.namelist()})
    return contents


def whole_model(weight: np.ndarray[Any, Any], bias: list[float]) -> bytes:
    """A file that models.load accepts, of a model with one layer."""
    outputs, inputs = weight.shape
    architecture = Architecture(inputs=inputs, outputs=outputs).model_dump_json()
    tensors = {"output.weight": weight.astype("f4"), "output.bias": np.array(bias, "f4")}
    return safetensors.numpy.save(tensors, {"architecture": architecture})


def model_and_program(canary: Path) -> bytes:
    """A whole model whose weights are also a zip archive that Python runs as a program."""
    for shift in range(4):  # until no four bytes of it are NaN or infinity
        contents = program(canary).rjust(4 * 7840 - shift, b"\0") + bytes(shift)
        weight = np.frombuffer(contents, "<f4").reshape(10, 784)
        if np.isfinite(weight).all():
            break
    return whole_model(weight, [0.0] * 10)


def run_program(path: Path) -> None:
    runpy.run_path(str(path))


torch_load = partial(torch.load, weights_only=False)
# How such a file is made, and what runs the code in it.
CARRIERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    "a pickle": (lambda canary: pickle.dumps(Canary(canary)), pd.read_pickle),
    "a file of torch.save": (torch_file, torch_load),
    "a file of torch.save before 1.6": (partial(torch_file, new=False), torch_load),
    "a NumPy file of objects": (numpy_file, partial(np.load, allow_pickle=True)),
    "a zip archive with a program": (program, run_program),
    "a file of both safetensors and torch.save": (torch_and_safetensors, torch_load),
    "a whole model that is also a program": (model_and_program, run_program),
}
ACCEPTED = {  # as numbers
    "a file of both safetensors and torch.save": {"files.read_tensors"},
    "a whole model that is also a program": {"files.read_tensors", "models.load"},
}


def with_header(contents: bytes, old: str, new: str) -> bytes:
    """The safetensors file with another text in its header."""
    size = int.from_bytes(contents[:8], "little")
    header, data = contents[8 : 8 + size].decode(), contents[8 + size :]
    assert old in header
    header = header.replace(old, new)
    return struct.pack("<Q", len(header)) + header.encode() + data


def added(name: str, *shape: int) -> tuple[str, str]:
    """Adds a tensor without data to the header."""
    description = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    return '{"__metadata__"', f'{{"{name}":{json.dumps(description)},"__metadata__"'


METADATA, HIDDEN = '"__metadata__":', r"\"hidden\":[16,"
BIAS = '"output.bias":{"dtype":"F32","shape":['
I8 = '{"dtype":"I8","shape":[3],"data_offsets":[0,3]}'
HEADERS = {  # what is replaced in the header by what
    "a tensor twice": (BIAS, f'"output.bias":{I8},{BIAS}'),
    "metadata twice": (METADATA, f'{METADATA}{{"architecture":"{{}}"}},{METADATA}'),
    "a dtype twice": (BIAS, BIAS.replace(":{", ':{"dtype":"I32",')),
    "a tensor too many": added("more", 0),
    "a tensor of 2**62 numbers": (BIAS, f"{BIAS}{2**62},"),
    "a tensor of 0 x 2**62 numbers": added("more", 0, 2**62),
    "a tensor of 0 x 2**63 numbers": added("more", 0, 2**63),
    "a tensor of -3 numbers": (BIAS, f"{BIAS}-"),
    "another dtype": ('"F32"', '"I32"'),
    "an unknown dtype": ('"F32"', '"F33"'),
    "a name of 900,000 letters": added("a" * 900_000, 0),
    "a name with control characters": added(r"\u001b[2J\u0007", 0),
    "no architecture": (METADATA, '"output":'),
    "another width": (",8]", ",9]"),
    "a huge width": (HIDDEN, HIDDEN + "65536," * 62),
    "a width of 10**30": (HIDDEN, f"{HIDDEN}{10**30},"),
    "a text as width": (r"\"inputs\":20", r"\"inputs\":\"20\""),
    "a function as activation": ("tanh", "os.system"),
    "an unknown key": (r"\"hidden\"", r"\"loader\":\"os.system\",\"hidden\""),
}
MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in the length": lambda model: model[:5],
    "cut in the header": lambda model: model[:200],
    "cut in the data": lambda model: model[:-1],
    "a byte too many": lambda model: model + b"\0",
    "a zip archive after it": partial(with_zip, members={"weights": b""}),
    "a length of 2**64 - 1": lambda model: b"\xff" * 8 + model[8:],
    "a header without end": lambda model: struct.pack("<Q", 500_000) + b'{"a":' * 100_000 + model,
    "NaN": lambda model: model[:-4] + struct.pack("<f", math.nan),
    "infinity": lambda model: model[:-4] + struct.pack("<f", math.inf),
    **{kind: partial(with_header, old=old, new=new) for kind, (old, new) in HEADERS.items()},
}


def is_model(model: models.Network) -> bool:
    numbers, inputs = list(model.parameters()), torch.zeros(1, model.architecture.inputs)
    finite = all(n.dtype == torch.float32 and bool(n.isfinite().all()) for n in numbers)
    return finite and models.predict(model, inputs).shape == (1, model.architecture.outputs)


def are_images(found: tuple[torch.Tensor, torch.Tensor]) -> bool:
    images, labels = found
    types = images.dtype, labels.dtype
    same = images.shape == (len(labels), 28, 28) and types == (torch.uint8, torch.int64)
    return same and set(labels.tolist()) <= set(range(10))


def are_examples(found: datasets.Examples) -> bool:
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
POINTS = datasets.Examples(torch.arange(20).view(10, 2) / 7, torch.arange(10).view(10, 1) / 3)
TENSORS = {"model.output.weight": torch.ones(3, 3), "momentum.0": torch.zeros(3)}
STATE = {"position": {"epoch": 3}, "groups": [1]}
FLOAT = {np.dtype(float)}
# Functions that read files, and what is true of all that they return.
READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], object]]] = {
    "models.load": (models.load, is_model),
    "datasets.read_images": (datasets.read_images, are_images),
    "datasets.read_regression": (datasets.read_regression, are_examples),
    "datasets.read_truth": (datasets.read_truth, lambda t: np.isfinite([*t[0], t[1]]).all()),
    "files.read_csv": (files.read_csv, lambda rows: set(pd.DataFrame(rows).dtypes) <= FLOAT),
    "files.read_json": (files.read_json, json.dumps),
    "files.read_tensors": (files.read_tensors, lambda t: all(map(torch.is_tensor, t[0].values()))),
    "checkpoints.Checkpoint": (read_checkpoint, is_checkpoint),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder with a good file for each reader, under its name."""
    models.save(models.build(MLP, 1), tmp_path / "models.load")
    files.write_tensors(tmp_path / "datasets.read_images", IMAGES)
    datasets.write_regression(tmp_path / "datasets.read_regression", POINTS)
    files.write_json(tmp_path / "datasets.read_truth", {"weights": [2.0, -3.4], "bias": 4.2})
    files.write_csv(tmp_path / "files.read_csv", TABLE)
    files.write_json(tmp_path / "files.read_json", {"epochs": TABLE, "note": [None, True, "x"]})
    files.write_tensors(tmp_path / "files.read_tensors", IMAGES)
    checkpoints.Checkpoint(tmp_path / "checkpoints.Checkpoint").save(TENSORS, STATE)
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


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limits memory to half a GiB more than is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 2**29
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@fault(
    "{kind}, given to every function that reads files",
    "no code runs: the file is refused in one line, or read as numbers",
    "the function that the file is made for runs the code",
)
@pytest.mark.parametrize("kind", CARRIERS)
def test_no_reader_runs_the_code_in_a_file(tmp_path: Path, kind: str, times: Times) -> None:
    path, canary = tmp_path / "file", tmp_path / "canary"
    make, run_code = CARRIERS[kind]
    path.write_bytes(make(canary))
    run_code(path)
    assert canary.is_dir()
    canary.rmdir()
    accepted = {reader for reader in READERS if not is_refused(reader, path)}
    assert accepted == ACCEPTED.get(kind, set())
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
    path = good / "models.load"
    with pytest.raises(RuntimeError, match="allocate"):
        torch.empty(2**31)
    assert not is_refused("models.load", path)
    contents = path.read_bytes()
    for kind, change in MALFORMED.items():
        path.write_bytes(change(contents))
        assert is_refused("models.load", path), kind
    times(len(MALFORMED))


@fault("JSON 100,000 levels deep, as a file and in a checkpoint", ONE_LINE, "a few levels are read")
def test_json_of_too_many_levels_is_refused(tmp_path: Path, times: Times) -> None:
    path = tmp_path / "file"
    path.write_text('{"a": [[[1]]]}')
    assert files.read_json(path) == {"a": [[[1]]]}
    for start in ("[", '{"a":', '{"weights":['):
        path.write_text(start * 100_000)
        assert is_refused("files.read_json", path)
        assert is_refused("datasets.read_truth", path)
        files.write_tensors(path, TENSORS, ("checkpoint", start * 100_000))
        assert is_refused("checkpoints.Checkpoint", path)
    times(9)


@fault("a number beyond float32 in the regression data", ONE_LINE, "a smaller number is read")
def test_a_number_beyond_float32_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x1,y\n1,3e38\n")
    assert not is_refused("datasets.read_regression", path)
    path.write_text("x1,y\n1,4e38\n")
    assert is_refused("datasets.read_regression", path)


@fault("a checkpoint under another name", "ignored", "under its own name it is used")
def test_a_checkpoint_under_another_name_is_ignored(good: Path) -> None:
    path = good / "checkpoints.Checkpoint"
    assert not is_refused(path.name, path)
    assert is_refused(path.name, path.rename(good / "other"))


TEXTS = [
    b"9" * 20, b"-", b"[", b"{", b'"', b"\\u0000", b"NaN", b"null", b",", b"\n", b"1e999", b"\xff",
    b"\0", b"F8_E4M3", b"BOOL", b"\r", b"\xe2\x80\xa8",
]  # fmt: skip


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
    path = good / name
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
    r"|(?<![.\w])(eval|exec|compile|__import__)\(|\bos\.(system|popen)\("
    r"|\b(allow_pickle|shell|weights_only)=|\bYAML\((?!typ='safe')",
    re.MULTILINE | re.IGNORECASE,
)
DANGEROUS = """import pickle; from joblib import load; torch.load('x'); eval('1'); import os, yaml
from torch import nn, load; exec(code); np.load(x, allow_pickle=True); YAML(); YAML(typ="unsafe")
import yaml; subprocess.run(x, shell = True); pd.read_pickle(x)"""


@fault(
    "the code's files are searched for pickle, torch.load, eval, shell and the like",
    "none is found", "a line of code with one of these is found",
)  # fmt: skip
def test_no_code_of_the_project_runs_what_it_reads(times: Times) -> None:
    for statement in ast.parse(DANGEROUS).body:
        assert DANGER.search(ast.unparse(statement)), ast.unparse(statement)
    assert not DANGER.search("model.eval(); YAML(typ='safe', pure=True); json.loads(x)")
    folders = ("exact", "lab", "stages", "tools")
    paths = [path for folder in folders for path in (ROOT / folder).glob("**/*.py")]
    assert len(paths) > 20
    for path in paths:
        assert not DANGER.search(ast.unparse(ast.parse(path.read_text(encoding="utf-8")))), path
    times(len(paths))


def everything(folder: Path) -> dict[Path, bytes]:
    """All files in the folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@fault(
    "an untrusted model given to `python -m stages.evaluate mlp`: not a model, of other sizes, or"
    " with outputs that overflow",
    "exit code 1, one line; no code runs; the old results as they were",
    "the trained model is evaluated to the same bytes",
)
@pytest.mark.slow
def test_evaluate_refuses_an_untrusted_model_and_keeps_the_old_results(
    clone: Clone, in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Times
) -> None:
    monkeypatch.chdir(clone.folder)
    Path("dvc.lock").unlink()  # by which the stage would see that the model has changed
    trained, canary = MODEL.read_bytes(), tmp_path / "canary"
    refused = {
        "a pickle": pickle.dumps(Canary(canary)),
        "a tensor twice": MALFORMED["a tensor twice"](trained),
        "other inputs": whole_model(np.zeros((10, 785)), [0.0] * 10),
        "too few outputs": whole_model(np.zeros((3, 784)), [0.0] * 3),
        "too many outputs": whole_model(np.zeros((12, 784)), [0.0] * 12),
        "overflow in the outputs": whole_model(np.full((10, 784), 3e38), [0.0] * 10),
        "overflow in the loss": whole_model(np.zeros((10, 784)), [3e38, *[-3e38] * 9]),
    }
    as_process = partial(clone.try_, "python", "-m", "stages.evaluate", "mlp")
    before = everything(Path("results"))
    assert in_process(evaluate, "mlp").returncode == 0
    assert everything(Path("results")) == before
    for kind, model in refused.items():
        MODEL.write_bytes(model)
        runs = [partial(in_process, evaluate, "mlp"), *([as_process] if kind == "a pickle" else [])]
        for run in runs:
            done = run()
            assert done.returncode == 1 and not done.stdout, kind
            assert done.stderr.startswith("error: ") and done.stderr.endswith("\n"), done.stderr
            assert done.stderr[:-1].isprintable() and len(done.stderr) < 10_000, done.stderr
            assert everything(Path("results")) == before | {MODEL: model}, kind
            assert not canary.exists()
    times(len(refused) + 1)
