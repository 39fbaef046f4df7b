"""Files from strangers are refused in one line: no code of theirs runs, nothing else is written.

A canary is a folder that exists as soon as a stranger's code has run.
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
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import psutil
import pytest
import torch
from ruamel.yaml import YAML

import stages
from benchmarks.clones import ROOT
from lab import checkpoints, datasets, files, models
from lab.files import InputError
from lab.models import Architecture
from stages import evaluate
from tests.conftest import Clone
from tests.faults.conftest import copy_of
from tools import replay

PART = "8. Files from strangers"
REFUSED = "one line that names the file; no code run; nothing written"
MLP = Architecture(inputs=20, outputs=3, hidden=(16, 8), activation="tanh", dropout=0.5)
REGRESSION = "linear_regression"  # the fastest to replay
Tried = Callable[..., None]
Header = dict[str, Any]


class Canary:
    """Unpickled, it makes the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Not there."""
    return tmp_path / "canary"


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a small model."""
    path = tmp_path_factory.mktemp("good") / "model"
    models.save(models.build(MLP, 1), path)
    return path.read_bytes()


# Files that hold code


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Canary(canary))


def torch_file(canary: Path, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save({"weights": Canary(canary)}, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def numpy_file(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def program(canary: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("__main__.py", f"import os; os.mkdir({str(canary)!r})")
    return file.getvalue()


def torch_and_safetensors(canary: Path) -> bytes:
    """One file that both read: safetensors' first bytes, a length, are those of a zip archive."""
    length = int.from_bytes(b"PK\x03\x04", "little")
    inner = zipfile.ZipFile(io.BytesIO(torch_file(canary)))
    size = 0
    for _ in range(2):  # the first time to learn the archive's size
        header = {"archive": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        text = json.dumps(header).encode().ljust(length)
        file = io.BytesIO(struct.pack("<Q", length) + text)
        with zipfile.ZipFile(file, "a") as archive:
            for each in inner.namelist():
                archive.writestr(each, inner.read(each))
        size = len(file.getvalue()) - length - 8
    return file.getvalue()


def a_model_and_a_program(canary: Path) -> bytes:
    """A whole model of this project whose weights are, seen by Python, a program in an archive."""
    count = 784 * 10
    for shift in range(4):  # until no four bytes of it are NaN or infinity
        weights = program(canary).rjust(4 * count - shift, b"\0") + bytes(shift)
        if np.isfinite(np.frombuffer(weights, "<f4")).all():
            break
    header = {
        "__metadata__": {"architecture": Architecture(inputs=784, outputs=10).model_dump_json()},
        "output.bias": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]},
        "output.weight": {"dtype": "F32", "shape": [10, 784], "data_offsets": [40, 40 + 4 * count]},
    }
    return joined(header, bytes(40) + weights)


def run_program(path: Path) -> None:
    runpy.run_path(str(path))


def torch_load(path: Path) -> None:
    torch.load(path, weights_only=False)


def numpy_load(path: Path) -> None:
    np.load(path, allow_pickle=True)


def unpickle(path: Path) -> None:
    pickle.loads(path.read_bytes())  # noqa: S301 -- the control


CARRIERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], None]]] = {
    "a pickle": (pickled, unpickle),
    "a file of torch.save": (torch_file, torch_load),
    "a file of torch.save as it was before 1.6": (lambda c: torch_file(c, new=False), torch_load),
    "a NumPy file of objects": (numpy_file, numpy_load),
    "a zip archive with a program": (program, run_program),
    "a file that is both safetensors and of torch.save": (torch_and_safetensors, torch_load),
    "a whole model that is also a program": (a_model_and_a_program, run_program),
}


# Files that are wrong


def split(contents: bytes) -> tuple[Header, bytes]:
    """Header and data of a safetensors file."""
    size = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + size]), contents[8 + size :]


def joined(header: Header | bytes, data: bytes) -> bytes:
    """The file with this header and these data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def text_changed(old: str, new: str) -> Callable[[bytes], bytes]:
    """What puts another text in the place of the first such one in the header."""

    def change(contents: bytes) -> bytes:
        header, data = split(contents)
        text = json.dumps(header)
        assert old in text
        return joined(text.replace(old, new, 1).encode(), data)

    return change


def asking(**changes: object) -> Callable[[bytes], bytes]:
    """What changes the architecture in the header."""

    def change(contents: bytes) -> bytes:
        header, data = split(contents)
        architecture = json.loads(header["__metadata__"]["architecture"]) | changes
        header["__metadata__"]["architecture"] = json.dumps(architecture)
        return joined(header, data)

    return change


def with_tensor(name: str, shape: list[int]) -> Callable[[bytes], bytes]:
    """What adds a tensor without data."""

    def change(contents: bytes) -> bytes:
        header, data = split(contents)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data)] * 2}
        return joined(header, data)

    return change


def with_last(number: float) -> Callable[[bytes], bytes]:
    """What puts the number in the place of the last weight."""
    return lambda contents: contents[:-4] + struct.pack("<f", number)


def zip_after_it(contents: bytes) -> bytes:
    file = io.BytesIO(contents)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("weights", "")
    return file.getvalue()


BIAS = '"output.bias": {"dtype": "F32", '
WRONG: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in the length": lambda contents: contents[:5],
    "cut in the header": lambda contents: contents[:200],
    "cut in the data": lambda contents: contents[:-1],
    "a byte too many": lambda contents: contents + b"\0",
    "a zip archive after it": zip_after_it,
    "a length of 2**64 - 1": lambda contents: b"\xff" * 8 + contents[8:],
    "a header without end": lambda contents: joined(b'{"a":' * 100_000, contents),
    "a tensor twice": text_changed(BIAS, f'"output.bias": {{"dtype": "I8"}}, {BIAS}'),
    "metadata twice": text_changed("{", '{"__metadata__": {"architecture": "{}"}, '),
    "a dtype twice": text_changed('"dtype": ', '"dtype": "I32", "dtype": '),
    "a tensor too many": with_tensor("more", [0]),
    "a tensor of 2**62 numbers": text_changed(f'{BIAS}"shape": [', f'{BIAS}"shape": [{2**62}, '),
    "a tensor of 0 x 2**62 numbers": with_tensor("more", [0, 2**62]),
    "a tensor of 0 x 2**63 numbers": with_tensor("more", [0, 2**63]),
    "a tensor of -3 numbers": text_changed(f'{BIAS}"shape": [', f'{BIAS}"shape": [-'),
    "another dtype": lambda contents: contents.replace(b'"F32"', b'"I32"'),
    "an unknown dtype": lambda contents: contents.replace(b'"F32"', b'"F33"'),
    "NaN": with_last(math.nan),
    "infinity": with_last(math.inf),
    "a name of 900,000 letters": with_tensor("a" * 900_000, [0]),
    "a name that commands the terminal": with_tensor("\x1b[2J\x07", [0]),
    "no architecture": text_changed('"__metadata__"', '"output"'),
    "another width": asking(hidden=[16, 9]),
    "a huge width": asking(hidden=[65_536] * 64),
    "a width of 10**30": asking(hidden=[10**30]),
    "a text as width": asking(inputs="784"),
    "a function as activation": asking(activation="os.system"),
    "an unknown key": asking(loader="os.system"),
}


# Readers


def is_a_model(model: models.Network) -> bool:
    expected = models.build(model.architecture, 1).state_dict()
    found = model.state_dict()
    return found.keys() == expected.keys() and all(
        found[name].shape == tensor.shape
        and found[name].dtype == torch.float32
        and bool(torch.isfinite(found[name]).all())
        for name, tensor in expected.items()
    )


def are_images(found: tuple[torch.Tensor, torch.Tensor]) -> bool:
    images, labels = found
    return (
        (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        and images.shape == (len(labels), 28, 28)
        and set(labels.tolist()) <= set(range(10))
    )


def are_examples(found: datasets.Examples) -> bool:
    features, targets = found
    return targets.shape == (len(features), 1) and bool(torch.isfinite(torch.cat(found, 1)).all())


def is_a_truth(found: tuple[list[float], float]) -> bool:
    return all(math.isfinite(number) for number in (*found[0], found[1]))


def is_a_table(found: list[dict[str, float]]) -> bool:
    return all(type(number) is float for row in found for number in row.values())


def are_tensors(found: tuple[dict[str, torch.Tensor], dict[str, str]]) -> bool:
    return all(isinstance(tensor, torch.Tensor) for tensor in found[0].values())


class Reader(NamedTuple):
    """A function of the project that reads files."""

    read: Callable[[Path], Any]
    valid: Callable[[Any], bool]
    write: Callable[[Path], None]


IMAGES = {"images": torch.zeros(5, 28, 28, dtype=torch.uint8), "labels": torch.arange(5)}
TABLE = [{"epoch": float(i), "loss": 0.1 * i} for i in range(1, 6)]
POINTS = datasets.Examples(torch.arange(20).view(10, 2) / 7, torch.arange(10).view(10, 1) / 3)
READERS: dict[str, Reader] = {
    "models.load": Reader(
        models.load, is_a_model, lambda path: models.save(models.build(MLP, 1), path)
    ),
    "datasets.read_images": Reader(
        datasets.read_images, are_images, lambda path: files.write_tensors(path, IMAGES)
    ),
    "datasets.read_regression": Reader(
        datasets.read_regression, are_examples, lambda path: datasets.write_regression(path, POINTS)
    ),
    "datasets.read_truth": Reader(
        datasets.read_truth, is_a_truth,
        lambda path: files.write_json(path, {"weights": [2.0, -3.4], "bias": 4.2}),
    ),
    "files.read_csv": Reader(
        files.read_csv, is_a_table, lambda path: files.write_csv(path, TABLE)
    ),
    "files.read_json": Reader(
        files.read_json, lambda found: json.dumps(found) != "",
        lambda path: files.write_json(path, {"epochs": TABLE, "note": [None, True, "x"]}),
    ),
    "files.read_tensors": Reader(
        files.read_tensors, are_tensors, lambda path: files.write_tensors(path, IMAGES)
    ),
}  # fmt: skip


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    """The line by which the reader refuses the file."""
    with pytest.raises(InputError) as error:
        read(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and line.isprintable(), line
    return line


def outcome(read: Callable[[Path], Any], path: Path) -> tuple[Any, str]:
    """What the reader makes of the file, or the line by which it refuses it."""
    try:
        return read(path), ""
    except InputError as error:
        return None, str(error)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Room for half a GiB more than is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    room = psutil.Process().memory_info().vms + 2**29
    resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# What the readers do


@pytest.mark.parametrize("kind", CARRIERS)
def test_no_reader_runs_the_code_in_a_file(
    tmp_path: Path, canary: Path, kind: str, tried: Tried
) -> None:
    make, victim = CARRIERS[kind]
    path = tmp_path / "file"
    path.write_bytes(make(canary))
    victim(path)
    assert canary.is_dir()
    canary.rmdir()

    whole = make is a_model_and_a_program
    takes = {make is torch_and_safetensors: "files.read_tensors", whole: "models.load"}.get(True)
    for name, reader in READERS.items():
        if name == takes or (whole and name == "files.read_tensors"):
            assert reader.valid(reader.read(path))  # numbers, and no more than that
        else:
            refusal(reader.read, path)
    assert checkpoints.Checkpoint(path).saved is None
    assert not canary.exists()
    control = "the reader it is made for runs the code"
    tried(
        PART,
        f"Given to each reader: {kind}",
        "no code run: one line, or plain numbers",
        control,
        len(READERS) + 1,
    )


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.usefixtures("little_memory")
def test_a_wrong_model_is_refused_in_one_line(
    tmp_path: Path, good: bytes, kind: str, tried: Tried
) -> None:
    path = tmp_path / "file"
    path.write_bytes(good)
    assert is_a_model(models.load(path))
    path.write_bytes(WRONG[kind](good))
    start = time.process_time()
    refusal(models.load, path)
    assert time.process_time() - start < 5
    tried(PART, "Models cut, doubled, of other shapes, dtypes or sizes, with NaN", REFUSED,
          "the file before it was harmed is read")  # fmt: skip


@pytest.mark.parametrize("start", ["[", '{"a":', '{"weights":['])
def test_json_without_end_is_refused_in_one_line(tmp_path: Path, start: str, tried: Tried) -> None:
    path = tmp_path / "file"
    path.write_text('{"a": [[[1]]]}')
    assert files.read_json(path) == {"a": [[[1]]]}
    path.write_text(start * 100_000)
    refusal(files.read_json, path)
    refusal(datasets.read_truth, path)
    files.write_tensors(path, IMAGES, ("checkpoint", start * 100_000))
    assert checkpoints.Checkpoint(path).saved is None
    tried(PART, "JSON 100,000 levels deep, as file and in a checkpoint", "one line; not used",
          "a few levels are read", 3)  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_a_number_beyond_float32_is_refused_without_a_warning(tmp_path: Path, tried: Tried) -> None:
    path = tmp_path / "file"
    path.write_text("x1,y\n1,3e38\n")
    assert are_examples(datasets.read_regression(path))
    path.write_text("x1,y\n1,4e38\n")
    refusal(datasets.read_regression, path)
    tried(PART, "A number beyond float32 in the regression data", REFUSED, "one below is read")


def test_what_a_header_claims_takes_no_memory(
    tmp_path: Path, good: bytes, little_memory: None, tried: Tried
) -> None:
    with pytest.raises(RuntimeError, match="allocate"):
        torch.empty(2**31)
    huge = [kind for kind in WRONG if "huge" in kind or "2**" in kind or "without end" in kind]
    for kind in huge:
        (tmp_path / "file").write_bytes(WRONG[kind](good))
        refusal(models.load, tmp_path / "file")
    held = "refused, with room for 512 MiB more"
    tried(PART, "Headers that claim huge sizes", held, "a tensor of 8 GiB finds no room", len(huge))


def harmed(contents: bytes, r: random.Random) -> bytes:
    """Bytes flipped, cut away, put in; more often than not at the beginning, where sizes are."""
    found = bytearray(contents)
    for _ in range(r.choice((1, 1, 1, 2, 5, 20))):
        at = r.randrange(1 + min(len(found), r.choice((400, len(contents)))))
        match r.randrange(6):
            case 0 | 1 if found:
                found[min(at, len(found) - 1)] ^= 1 << r.randrange(8)
            case 2:
                del found[at:]
            case 3:
                del found[at : at + r.choice((1, 2, 8, 30))]
            case 4:
                found[at:at] = r.randbytes(r.choice((1, 4, 100)))
            case _:
                found[at:at] = r.choice(
                    (b"9" * 20, b"-", b"[", b"{", b'"', b"\\u0000", b"NaN", b"null", b",", b"\n",
                     b"1e999", b"\xff", b"\0", b"F8_E4M3", b"BOOL", b"\r", b"\xe2\x80\xa8")
                )  # fmt: skip
    return bytes(found)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", READERS)
def test_a_harmed_file_is_refused_or_gives_a_valid_value(
    tmp_path: Path, name: str, full: bool, tried: Tried
) -> None:
    reader, path = READERS[name], tmp_path / "file"
    reader.write(path)
    contents = path.read_bytes()
    assert reader.valid(reader.read(path))
    times, refused, slowest = 5000 if full else 300, 0, 0.0
    for seed in range(times):
        path.write_bytes(harmed(contents, random.Random(f"{name} {seed}")))
        start = time.process_time()
        value, line = outcome(reader.read, path)
        if line:
            assert line.startswith(f"{path}: ") and line.isprintable(), seed
            assert len(line) < 4000, seed
            refused += 1
        else:
            assert reader.valid(value), seed
        slowest = max(slowest, time.process_time() - start)
    assert refused > times / 4 and slowest < 5
    tried(PART, f"Random bytes flipped, cut away or put in, for {name}",
          "one line, or a value that is valid", "the file before is read", times)  # fmt: skip


@pytest.mark.usefixtures("little_memory")
def test_a_harmed_checkpoint_is_not_used(tmp_path: Path, full: bool, tried: Tried) -> None:
    path = tmp_path / "name.safetensors"
    tensors = {"model.output.weight": torch.ones(3, 3), "momentum.0": torch.zeros(3)}
    checkpoints.Checkpoint(path).save(tensors, {"position": {"epoch": 3}, "groups": [1]})
    contents = path.read_bytes()
    whole = checkpoints.Checkpoint(path).saved
    assert whole and whole.state["position"] == {"epoch": 3}
    times = 5000 if full else 300
    for seed in range(times):
        path.write_bytes(harmed(contents, random.Random(seed)))
        saved = checkpoints.Checkpoint(path).saved
        # Spaces in the header, say, change nothing.
        assert saved is None or (
            saved.state == whole.state
            and saved.tensors.keys() == tensors.keys()
            and all(torch.equal(saved.tensors[name], tensors[name]) for name in tensors)
        ), seed
    other = path.with_name("another name.safetensors")
    other.write_bytes(contents)
    assert checkpoints.Checkpoint(other).saved is None
    tried(PART, "Checkpoints with random bytes flipped, cut away or put in, or of another name",
          "not used: training begins anew", "the file before is used", times + 1)  # fmt: skip


# The project's own code

FORBIDDEN = {
    "import": {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
               "yaml", "runpy", "code"},
    "builtin": {"eval", "exec", "compile", "__import__"},
    "function": {"torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load",
                 "pd.read_pickle", "pandas.read_pickle", "os.system", "os.popen",
                 "importlib.import_module", "mlflow.pyfunc.load_model"},
    "keyword": {"allow_pickle", "shell", "weights_only"},
}  # fmt: skip


def dangers(code: str) -> list[str]:
    """What the code has that would run what it reads."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
            found += [n for n in names if n.split(".")[0] in FORBIDDEN["import"]]
            found += [n for n in names if n in FORBIDDEN["function"]]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [called] if called in FORBIDDEN["builtin"] | FORBIDDEN["function"] else []
            found += [str(k.arg) for k in node.keywords if k.arg in FORBIDDEN["keyword"]]
            kinds = [ast.unparse(k.value) for k in node.keywords if k.arg == "typ"]
            if called.split(".")[-1] == "YAML" and kinds != ["'safe'"]:
                found.append(called)
    return found


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import load", "import torch; torch.load('x')", "eval('1')",
     "from torch import load", "exec(code)", "np.load(x, allow_pickle=True)", "YAML()",
     "YAML(typ='unsafe')", "import yaml", "subprocess.run(x, shell=True)", "pd.read_pickle(x)"],
)  # fmt: skip
def test_the_search_for_dangerous_code_finds_it(code: str) -> None:
    assert dangers(code)


def test_no_code_of_the_project_runs_what_it_reads(tried: Tried) -> None:
    paths = [
        p for folder in ("exact", "lab", "stages", "tools") for p in (ROOT / folder).glob("**/*.py")
    ]
    assert len(paths) > 20
    for path in paths:
        assert not dangers(path.read_text(encoding="utf-8")), path
    assert not dangers("model.eval(); YAML(typ='safe', pure=True); json.loads(x)")
    tried(PART, "Search of the code's files for pickle, torch.load, eval, shell and their like",
          "none is there", "each is found where it is put", len(paths))  # fmt: skip


# The stage


def everything(folder: Path) -> dict[str, bytes]:
    """All files in the folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of all files in the folder, less MLflow's database, which gets a tag."""
    stats = {p: p.stat() for p in folder.rglob("*") if p.is_file() and "mlflow.db" not in p.name}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture(scope="module")
def unlocked(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The finished pipeline without dvc.lock, by which a stage would know a strange file."""
    clone = copy_of(finished, tmp_path_factory.mktemp("strangers") / "copy")
    (clone.folder / "dvc.lock").unlink()
    return clone


@pytest.fixture
def place(unlocked: Clone, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder, in which `python -m stages.evaluate mlp` is about to run in this process."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "stages/evaluate.py"), "mlp"])
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.chdir(unlocked.folder)
    before = signal.getsignal(signal.SIGTERM)
    results = everything(unlocked.folder / "results")
    yield unlocked.folder
    for name, contents in results.items():
        (unlocked.folder / "results" / name).write_bytes(contents)
    signal.signal(signal.SIGTERM, before)


def overflowing(contents: bytes) -> bytes:
    """All weights at the end of what float32 can say."""
    header, data = split(contents)
    return joined(header, struct.pack("<f", 3e38) * (len(data) // 4))


def bursting(_: bytes) -> bytes:
    """Finite outputs, far enough apart for an infinite loss."""
    header, data = split(a_model_of(784, 10))
    header.pop("output.weight")
    header["output.bias"]["data_offsets"] = [0, 40]
    header["output.weight"] = {"dtype": "F32", "shape": [10, 784], "data_offsets": [40, len(data)]}
    return joined(header, struct.pack("<10f", 3e38, *[-3e38] * 9) + bytes(len(data) - 40))


def a_model_of(inputs: int, outputs: int) -> bytes:
    """A whole model of another task."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        models.save(models.build(Architecture(inputs=inputs, outputs=outputs), 1), path)
        return path.read_bytes()


BURSTING = "outputs too far apart"
LATER: dict[str, Callable[[bytes], bytes]] = {  # whole models, so that it is the stage that refuses
    "other inputs": lambda _: a_model_of(785, 10),
    "too few outputs": lambda _: a_model_of(784, 3),
    "too many outputs": lambda _: a_model_of(784, 12),
    "overflowing": overflowing,
    BURSTING: bursting,
}


def strange(kind: str, contents: bytes, canary: Path) -> bytes:
    """The file of this kind, made of a good one where it can be."""
    if kind in CARRIERS:
        return CARRIERS[kind][0](canary)
    return (WRONG | LATER)[kind](contents)


MODEL = "mlp/model.safetensors"
WHOLE = "a whole model that is also a program"  # which evaluate may well evaluate


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [*(kind for kind in CARRIERS if kind != WHOLE), *WRONG,
     *LATER],
)  # fmt: skip
def test_evaluate_refuses_a_strange_model_and_leaves_the_old_results(
    place: Path, canary: Path, kind: str, capsys: pytest.CaptureFixture[str], tried: Tried
) -> None:
    model = place / "results/mlp/model.safetensors"
    model.write_bytes(strange(kind, model.read_bytes(), canary))
    before = everything(place / "results")
    with pytest.raises(SystemExit) as end:
        stages.run(evaluate.main)
    out, err = capsys.readouterr()
    assert end.value.code == 1 and not out
    assert err.startswith("error: ") and err.endswith("\n")
    assert err[:-1].isprintable() and len(err) < 10_000, err[:1000]
    assert everything(place / "results") == before
    assert not canary.exists()
    tried(PART, "A strange model given to evaluate, in the test's process",
          "exit code 1, one line; the old results as they were",
          "the model as it was trained is evaluated to the same bytes")  # fmt: skip


@pytest.mark.slow
def test_evaluate_as_a_process_refuses_strange_models(
    unlocked: Clone, place: Path, canary: Path, full: bool, tried: Tried
) -> None:
    few = ["a pickle", "a file that is both safetensors and of torch.save", "a tensor twice"]
    kinds = [kind for kind in [*CARRIERS, *WRONG] if kind != WHOLE] if full else few
    model = place / "results/mlp/model.safetensors"
    contents, before = model.read_bytes(), everything(place / "results")
    unlocked.run("python", "-m", "stages.evaluate", "mlp")
    assert everything(place / "results") == before
    for kind in kinds:
        harmed_model = strange(kind, contents, canary)
        model.write_bytes(harmed_model)
        done = unlocked.try_("python", "-m", "stages.evaluate", "mlp")
        assert done.returncode == 1 and not done.stdout, kind
        line = "error: results/mlp/model.safetensors: not a "
        assert done.stderr.startswith(line) or kind in ("NaN", "infinity"), done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert everything(place / "results") == before | {MODEL: harmed_model}, kind
        assert not canary.exists()
    tried(PART, "A strange model given to `python -m stages.evaluate mlp`",
          "exit code 1, one line; no code run; the old results as they were",
          "the model as it was trained is evaluated to the same bytes", len(kinds))  # fmt: skip


# Replay


class Store(NamedTuple):
    """A clone with an MLflow store of one run, to be spoilt behind MLflow's back."""

    clone: Clone
    run: str

    def change(self, statement: str, *values: str | None) -> None:
        """Change the database."""
        with sqlite3.connect(self.clone.folder / "mlflow.db") as db:
            assert db.execute(statement, values).rowcount
        db.close()

    def tag(self, key: str, value: str | None) -> None:
        """Set a tag of the run."""
        self.change("INSERT OR REPLACE INTO tags (run_uuid, key, value) VALUES (?, ?, ?)",
                    self.run, key, value)  # fmt: skip

    def artifact(self, name: str) -> Path:
        """Where one of the run's artifacts lies."""
        return self.clone.folder / "mlartifacts" / REGRESSION / self.run / "artifacts" / name

    def model(self) -> Path:
        """Where its model lies."""
        found = self.clone.folder.glob("mlartifacts/*/models/*/artifacts/data/model.safetensors")
        return next(found)


@pytest.fixture(scope="module")
def recorded(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The finished pipeline with one run in MLflow."""
    clone = copy_of(finished, tmp_path_factory.mktemp("recorded") / "copy")
    clone.run("python", "-m", "stages.record", REGRESSION)
    with sqlite3.connect(clone.folder / "mlflow.db") as db:
        ((run,),) = db.execute("SELECT run_uuid FROM runs")
    db.close()
    return Store(clone, run)


@pytest.fixture
def store(recorded: Store, tmp_path: Path) -> Iterator[Store]:
    """The same, to be spoilt by one test."""
    aside, artifacts = tmp_path / "mlartifacts", recorded.clone.folder / "mlartifacts"
    shutil.copytree(artifacts, aside)
    tables = ("tags", "runs", "logged_models")
    with sqlite3.connect(recorded.clone.folder / "mlflow.db") as db:
        rows = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in tables}  # noqa: S608
    db.close()
    yield recorded
    with sqlite3.connect(recorded.clone.folder / "mlflow.db") as db:
        for name, found in rows.items():
            db.execute(f"DELETE FROM {name}")  # noqa: S608
            places = ", ".join("?" * len(found[0]))
            db.executemany(f"INSERT INTO {name} VALUES ({places})", found)  # noqa: S608
    db.close()
    shutil.rmtree(artifacts)
    shutil.move(aside, artifacts)


@pytest.fixture
def replayed(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[[], str]]:
    """A function that replays the run in this process, and returns why it cannot be tried."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(store.clone.folder)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools/replay.py"), store.run])
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_TRACKING"))]:
        monkeypatch.delenv(name)

    def run() -> str:
        before = listing(store.clone.folder)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            replay.main()
        out, err = capsys.readouterr()
        assert end.value.code == 2 and not out, err
        first, last = err.splitlines()
        assert first.startswith(f"replaying run {store.run} ("), err
        assert last.startswith(f"{store.run}: cannot be tried: ") and len(last) < 1000, err
        assert first.isprintable() and last.isprintable()
        assert listing(store.clone.folder) == before
        assert not list(temporary.iterdir())
        return last

    yield run
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # whatever it was before


ONE_LINE = "cannot be tried: exit code 2, one line; nothing run, nothing written"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["data/../../../evil", "/etc/passwd", "../evil", "lab/files.py", "results/../../evil",
     ".git/hooks/post-checkout",
     "", "."],
)  # fmt: skip
def test_a_run_that_names_other_files_cannot_be_tried(
    store: Store, replayed: Callable[[], str], path: str, tried: Tried
) -> None:
    store.tag(f"sha256.{path}", "0" * 64)
    assert "not a run that this pipeline recorded" in replayed()
    tried(PART, "Replay of a run that names files outside of data and results", ONE_LINE,
          "with only its model changed, the run is tried")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "commit",
    ["--upload-pack=mkdir CANARY", "--output=CANARY", "-h", "--help", "--batch", "--textconv",
     "-e", "--", "", "HEAD; mkdir CANARY", "$(mkdir CANARY)", "HEAD:stages", "^HEAD", "0" * 40,
     "HEAD\n--upload-pack=mkdir CANARY", "HEAD\0"],
)  # fmt: skip
def test_a_commit_that_is_none_cannot_be_tried(
    store: Store, replayed: Callable[[], str], canary: Path, commit: str, tried: Tried
) -> None:
    store.tag("git.commit", commit.replace("CANARY", str(canary)))
    replayed()
    assert not canary.exists()
    if "upload-pack" in commit:
        command = ["git", "ls-remote", f"--upload-pack=mkdir {canary};", "."]
        subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
        assert canary.exists()
    tried(PART, "Replay of a run whose commit is an option of git, a command, or no commit",
          ONE_LINE, "other commands of git run what such an option says")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.mkdir [CANARY]", "a: [1", "\0", "", "1", "seed: 2001-99-99",
     "a: &a [1, 1]\nb: [*a, *a]", "a:\n" + "".join(" " * i + "a:\n" for i in range(1, 900)),
     "seed: 1\nseed: 2\n", "seed: " + "9" * 10_000, "\ud800"],
    ids=range(11),
)  # fmt: skip
def test_strange_parameters_of_a_run_cannot_be_tried(
    store: Store, replayed: Callable[[], str], canary: Path, text: str, tried: Tried
) -> None:
    contents = text.replace("CANARY", str(canary)).encode("utf-8", "surrogatepass")
    store.artifact("params.yaml").write_bytes(contents)
    assert "params.yaml: " in replayed()
    assert not canary.exists()
    if "CANARY" in text:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            YAML(typ="unsafe", pure=True).load(contents)
        assert canary.exists()
    tried(PART, "Replay of a run whose parameters are no YAML, hold a command, or unfold",
          ONE_LINE, "an unsafe parser runs the command")  # fmt: skip


def new_file(path: str, mode: str = "100644", line: str = "x") -> str:
    """A patch that makes a file."""
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n"
        f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{line}\n"
    )


PATCHES = {
    "junk": "\0\1 junk",
    "nothing": "",
    "a file beside the clone": new_file("../../evil"),
    "a hook": new_file(".git/hooks/post-checkout", "100755", "#!/bin/sh"),
    "a hook, by Windows' name": new_file("GIT~1/hooks/post-checkout", "100755", "#!/bin/sh"),
    "git's configuration": new_file(".git/config"),
    "a link, and a file beyond it": new_file("data/link", "120000", "TMP")
    + "\\ No newline at end of file\n" + new_file("data/link/evil"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", PATCHES)
def test_a_strange_patch_of_a_run_cannot_be_tried(
    store: Store, replayed: Callable[[], str], tmp_path: Path, kind: str, tried: Tried
) -> None:
    store.tag("git.dirty", "true")
    patch = store.artifact("changes.patch")
    patch.write_text(PATCHES[kind].replace("TMP", str(tmp_path)))
    assert "cannot be tried: git " in replayed()
    assert not list(tmp_path.rglob("evil"))
    if "beside" in kind:
        control = tmp_path / "a/b"
        control.mkdir(parents=True)
        command = ["git", "apply", "--unsafe-paths", str(patch)]
        subprocess.run(command, cwd=control, check=True, capture_output=True)
        assert (tmp_path / "evil").exists()
    tried(PART, "Replay of a run whose patch is junk or writes outside of the clone",
          ONE_LINE, "without git's check a file beside is written")  # fmt: skip


HISTORY = f"sha256.results/{REGRESSION}/history.csv"
LOUD = "a name that commands the terminal, and nowhere its artifacts"
JUNK: dict[str, tuple[str, ...]] = {
    "a patch that is not there": ("UPDATE tags SET value = 'true' WHERE key = 'git.dirty'",),
    "no commit": ("DELETE FROM tags WHERE key = 'git.commit'",),
    "no digests": ("DELETE FROM tags WHERE key LIKE 'sha256.%'",),
    "artifacts nowhere": ("UPDATE runs SET artifact_uri = 'junk://x'",),
    "artifacts on a dead server": ("UPDATE runs SET artifact_uri = 'http://127.0.0.1:9/x'",),
    "a model nowhere": ("UPDATE logged_models SET artifact_location = 'junk://x'",),
    "a model of no known state": ("UPDATE logged_models SET status = 77",),
    "a null as commit": ("UPDATE tags SET value = NULL WHERE key = 'git.commit'",),
    "a null as place of the artifacts": ("UPDATE runs SET artifact_uri = NULL",),
    "a model on no MLflow server": (
        "UPDATE logged_models SET artifact_location = 'http://127.0.0.1:9/x'",
    ),
    "a null as digest": ("UPDATE tags SET value = NULL WHERE key = ?", HISTORY),
    LOUD: (
        "UPDATE runs SET name = ?, artifact_uri = 'junk://x'",
        "identical\n\x1b[2J",
    ),
    "a text as digest": ("UPDATE tags SET value = 'missing' WHERE key = ?", HISTORY),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", JUNK)
def test_a_store_of_junk_cannot_be_tried(
    store: Store, replayed: Callable[[], str], kind: str, tried: Tried
) -> None:
    store.change(*JUNK[kind])
    replayed()
    tried(PART, "Replay of a run that the store has junk of", ONE_LINE,
          "with only its model changed, the run is tried")  # fmt: skip


@pytest.mark.slow
def test_a_recorded_model_that_is_a_pickle_is_different_and_not_run(
    store: Store, canary: Path, tried: Tried
) -> None:
    store.model().write_bytes(pickled(canary))
    store.change("DELETE FROM tags WHERE key = 'fingerprint'")
    done = store.clone.try_("python", "-m", "tools.replay", store.run)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    differ = [re.split(r"  +", line)[0] for line in done.stdout.splitlines() if "DIFF" in line]
    assert differ == ["fingerprint", "model.safetensors in the store"]
    assert not canary.exists()
    unpickle(store.model())
    assert canary.is_dir()
    tried(PART, "Replay, as a process, of a run whose model in the store is a pickle",
          "different: exit code 1; no code run", "pickle.load runs it")  # fmt: skip
