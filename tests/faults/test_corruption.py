"""A byte that a disk lost: the stage that reads it refuses and says how to restore the file.

DVC alone does not notice: it looks at the time of change, and never into its cache.
"""

import os
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lab.common import lockfile
from lab.common.files import InputError
from stages import evaluate, record, train
from tests.conftest import Clone, Program, contents

pytestmark = pytest.mark.slow
fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "9. Corruption")
MODEL = Path("results/mlp/model.safetensors")
OUTPUTS = ("data/**/*", "results/**/*")
INPUTS = [  # stage, model, and a file that it reads
    (train, "mlp", "data/fashion_mnist/train.safetensors"),
    (train, "linear_regression", "data/regression_data/train.csv"),
    (evaluate, "mlp", str(MODEL)),
    (evaluate, "softmax_regression", "data/fashion_mnist/test.safetensors"),
    (evaluate, "linear_regression", "data/regression_data/truth.json"),
    *((record, "mlp", f"results/mlp/{name}") for name in record.TABLES),
    (record, "linear_regression", "data/regression_data/validation.csv"),
    (record, "softmax_regression", "results/softmax_regression/model.safetensors"),
]


def flip(path: Path, at: int | None = None) -> None:
    """Flip a bit and keep the time of change. A second call restores the file."""
    before = path.stat()
    path.chmod(before.st_mode | 0o200)  # DVC's cache is read-only
    with path.open("r+b") as file:
        position = before.st_size // 2 if at is None else at
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def name_in_lock(path: Path) -> Path:
    """How dvc.lock names an output: data as a folder."""
    return path.parent if path.parts[0] == "data" else path


@fault(
    "a byte flipped in data or results that a stage reads, the file's time as before",
    "exit code 1, one line that names the file and `make repair`; all outputs as they were",
    "dvc status calls it up to date",
)
def test_a_stage_refuses_a_corrupt_input_and_dvc_does_not_notice(
    clone: Clone, in_process: Program, times: Callable[[int], None]
) -> None:
    clone.forget_runs()
    paths = [Path(path) for _, _, path in INPUTS]
    clone.run("dvc", "status")  # DVC notes the times
    for path in paths:
        flip(path)
    assert clone.run("dvc", "status", "--quiet") == ""  # the control
    for path in paths:
        flip(path)
    before = contents(Path(), *OUTPUTS)
    for (stage, model, _), path in zip(INPUTS, paths, strict=True):
        flip(path)
        corrupt = contents(Path(), *OUTPUTS)
        done = in_process(stage, model)
        assert done.returncode == 1 and not done.stdout, done.stderr
        line = f"error: {name_in_lock(path)} is not what dvc.lock says was made: "
        assert done.stderr.startswith(line) and "`make repair`" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert contents(Path(), *OUTPUTS) == corrupt != before
        flip(path)
    assert not Path("mlflow.db").exists()
    times(len(paths))


@fault(
    "a random byte flipped in a random output, the check alone",
    "refused, by name",
    "as it was before, it passes",
)
@pytest.mark.usefixtures("clone")
def test_any_lost_byte_of_any_output_is_found(run_all: bool, times: Callable[[int], None]) -> None:
    recorded = lockfile.outputs()
    files = [f for path in recorded for f in ([path] if path.is_file() else sorted(path.iterdir()))]
    small = [file for file in files if file.stat().st_size < 10**7]
    lockfile.require_unchanged(*recorded)
    draw = random.Random(9)
    number = 500 if run_all else 50
    for _ in range(number):
        path = draw.choice(small)
        at = draw.randrange(path.stat().st_size)
        flip(path, at)
        name = name_in_lock(path)
        with pytest.raises(InputError, match=f"^{name} is not what dvc.lock says was made"):
            lockfile.require_unchanged(name)
        flip(path, at)
    lockfile.require_unchanged(*recorded)
    times(number)


@pytest.mark.usefixtures("clone")
def test_a_missing_or_added_file_and_an_unreadable_lock_are_refused() -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(InputError) as error:
            lockfile.require_unchanged(path)
        return str(error.value)

    data, lock = Path("data/regression_data"), Path("dvc.lock")
    lockfile.require_unchanged(data, Path("unknown"))
    (data / "more.csv").touch()
    assert refusal(data).startswith(f"{data} is not what dvc.lock says was made: `make repair`")
    MODEL.unlink()
    assert refusal(MODEL) == f"{MODEL}: cannot be read: No such file or directory"
    for text in ("", "stages: 3", "stages: {a: {outs: [{path: x}]}}", "a: [", "\0"):
        lock.write_text(text)
        line = r"dvc\.lock cannot be read \(.*\): `make repro` repairs it"
        assert re.fullmatch(line, refusal(data))
    lock.unlink()
    lockfile.require_unchanged(data)


@fault(
    "a byte flipped in the cached object of a model, which `dvc checkout` brings back",
    "evaluate refuses, by hand and under DVC",
    "dvc checkout says nothing",
)
@fault(
    "bytes flipped in objects of the cache, in a model and in data, a file of a killed stage, then"
    " `make repair`",
    "exactly these are removed, a line each; `dvc repro` makes them again: dvc.lock equal byte for"
    " byte, git status clean",
    "before, the stages refuse",
)
def test_a_corrupt_cache_is_found_and_made_again(clone: Clone) -> None:
    good = contents(Path(), "dvc.lock", *OUTPUTS)
    cached = clone.cached(lockfile.md5(MODEL))
    flip(cached)
    MODEL.unlink()
    clone.run("dvc", "checkout")
    assert MODEL.read_bytes() == cached.read_bytes() != good[str(MODEL)]
    for command in (
        ("python", "-m", "stages.evaluate", "mlp"),
        ("dvc", "repro", "--force", "--single-item", "evaluate@mlp"),
    ):
        done = clone.try_(*command)
        assert done.returncode and f"error: {MODEL} is not what dvc.lock says" in done.stderr

    folder, history = Path("data/regression_data"), Path("results/mlp/history.csv")
    objects = [cached, clone.cached(lockfile.md5(history)), clone.cached(lockfile.md5(folder))]
    for path in (*objects[1:], folder / "test.csv"):
        flip(path)
    temporary = history.with_name(".history.csv.a1b2")  # of a stage that was killed
    temporary.touch()
    damaged = {MODEL, folder, temporary, *(path.relative_to(clone.folder) for path in objects)}
    before = {path for path in Path().rglob("*") if path.is_file()}
    *removed, _ = clone.run("python", "-m", "tools.repair", "--damaged").splitlines()
    assert sorted(removed) == sorted(
        f"removed {path}, which was damaged or never complete" for path in damaged
    )
    gone = before - {path for path in Path().rglob("*") if path.is_file()}
    assert {folder if path.parent == folder else path for path in gone} == damaged

    clone.run("dvc", "repro")
    assert contents(Path(), "dvc.lock", *OUTPUTS) == good
    assert clone.run("git", "status", "--porcelain") == ""
    assert clone.run("python", "-m", "tools.repair", "--damaged") == "nothing is damaged\n"
    MODEL.unlink()
    clone.run("dvc", "checkout")  # the cache is whole again
    assert contents(Path(), "dvc.lock", *OUTPUTS) == good
