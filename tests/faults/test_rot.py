"""A byte that a disk lost: the stage that reads it refuses and says how to restore the file.

DVC alone does not notice: it takes the time of change of a file for its contents, and what is in
its cache for whole.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import integrity
from lab.files import InputError
from tests.conftest import Clone

pytestmark = pytest.mark.slow
PART = "9. Bit rot"
REFUSES = "exit code 1, one line that names the file and `make mend`; all outputs as they were"
UNNOTICED = "dvc status calls it up to date"
Tried = Callable[..., None]
MODEL = Path("results/mlp/model.safetensors")
CASES = {  # what rots, and a stage that reads it
    "data/fashion_mnist/train.safetensors": ("train", "mlp"),
    "data/regression/train.csv": ("train", "linear_regression"),
    "results/mlp/model.safetensors": ("evaluate", "mlp"),
    "results/mlp/history.csv": ("record", "mlp"),
    "results/mlp/predictions.csv": ("record", "mlp"),
}
MORE = {
    "data/fashion_mnist/test.safetensors": ("evaluate", "softmax_regression"),
    "data/regression/truth.json": ("evaluate", "linear_regression"),
    "data/regression/validation.csv": ("record", "linear_regression"),
    "results/mlp/confusion.csv": ("record", "mlp"),
    "results/mlp/metrics.json": ("record", "mlp"),
    "results/linear_regression/solution.csv": ("record", "linear_regression"),
    "results/softmax_regression/model.safetensors": ("record", "softmax_regression"),
}


def rot(path: Path, at: int | None = None) -> None:
    """Flip a bit of one byte, which no clock notices; a second time it is as before."""
    before = path.stat()
    path.chmod(before.st_mode | 0o200)  # DVC's cache is read-only
    with path.open("r+b") as file:
        place = before.st_size // 2 if at is None else at
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def outputs(clone: Clone) -> dict[str, bytes]:
    """All data and results."""
    paths = [path for folder in ("data", "results") for path in (clone.folder / folder).rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def named(path: str) -> str:
    """How dvc.lock names it: data as a folder."""
    return Path(path).parent.as_posix() if path.startswith("data/") else path


def in_cache(clone: Clone, path: Path) -> Path:
    """Its object in DVC's cache."""
    md5 = integrity.md5(clone.folder / path)
    return clone.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def test_a_stage_refuses_a_rotten_input_and_dvc_does_not_notice(
    copy: Clone, full: bool, tried: Tried
) -> None:
    cases = CASES | MORE if full else CASES
    copy.run("dvc", "status")  # DVC notes what it sees
    for path in cases:
        rot(copy.folder / path)
    assert copy.run("dvc", "status", "--quiet") == ""
    for path in cases:
        rot(copy.folder / path)
    for path, (stage, model) in cases.items():
        rot(copy.folder / path)
        before = outputs(copy)
        done = copy.try_("python", "-m", f"stages.{stage}", model)
        assert done.returncode == 1 and not done.stdout, done.stderr
        assert done.stderr.startswith(f"error: {named(path)} is not what dvc.lock says was made: ")
        assert "`make mend`" in done.stderr and len(done.stderr.splitlines()) == 1
        assert outputs(copy) == before
        tried(PART, f"A byte flipped in data or results that {stage} reads, its time as before",
              REFUSES, UNNOTICED)  # fmt: skip
        rot(copy.folder / path)
    assert not (copy.folder / "mlflow.db").exists()


def test_any_lost_byte_of_any_output_is_found(
    copy: Clone, full: bool, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    monkeypatch.chdir(copy.folder)
    recorded = integrity.outputs()
    files = [f for path in recorded for f in ([path] if path.is_file() else sorted(path.iterdir()))]
    integrity.require_unchanged(*(path for path in recorded if path.name != "receipt.json"))
    r = random.Random(9)
    times = 500 if full else 50
    for _ in range(times):
        path = r.choice([file for file in files if file.stat().st_size < 10**7])
        at = r.randrange(path.stat().st_size)
        rot(path, at)
        name = path.parent if path.parts[0] == "data" else path
        with pytest.raises(InputError, match=f"^{name} is not what dvc.lock says was made"):
            integrity.require_unchanged(name)
        rot(path, at)
    integrity.require_unchanged(*recorded)
    tried(PART, "A random byte flipped in a random output, the check alone", "refused, by name",
          "as it was before, it passes", times)  # fmt: skip


def test_what_rots_in_the_cache_is_found_when_it_comes_back_and_made_again(
    copy: Clone, tried: Tried
) -> None:
    lock = (copy.folder / "dvc.lock").read_bytes()
    good = outputs(copy)
    cached = in_cache(copy, MODEL)
    rot(cached)
    (copy.folder / MODEL).unlink()
    copy.run("dvc", "checkout")
    assert (
        (copy.folder / MODEL).read_bytes() == cached.read_bytes() != good[str(copy.folder / MODEL)]
    )

    done = copy.try_("python", "-m", "stages.evaluate", "mlp")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {MODEL} is not what dvc.lock ")
    done = copy.try_("dvc", "repro", "--force", "--single-item", "evaluate@mlp")
    assert done.returncode and f"error: {MODEL} is not what dvc.lock says" in done.stderr

    folder, other = copy.folder / "data/regression", Path("results/mlp/history.csv")
    rot(folder / "test.csv")
    rot(in_cache(copy, other))
    damaged = {cached, in_cache(copy, other), copy.folder / MODEL, folder}
    before = {path for path in copy.folder.rglob("*") if path.is_file()}
    said = copy.run("python", "-m", "tools.mend", "--damaged").splitlines()
    removed = {line.split(",")[0].removeprefix("removed ") for line in said[:-1]}
    assert removed == {str(path.relative_to(copy.folder)) for path in damaged}
    assert len(said) == len(damaged) + 1
    gone = before - {path for path in copy.folder.rglob("*") if path.is_file()}
    assert {folder if path.parent == folder else path for path in gone} == damaged

    copy.run("dvc", "repro")
    assert outputs(copy) == good
    assert (copy.folder / "dvc.lock").read_bytes() == lock
    assert copy.run("git", "status", "--porcelain") == ""
    said = copy.run("python", "-m", "tools.mend", "--damaged").splitlines()
    assert said == ["nothing is damaged"]
    shutil.rmtree(copy.folder / "results/mlp")
    copy.run("git", "checkout", "results/mlp")
    copy.run("dvc", "checkout")  # also the objects are whole again
    kept = {name: contents for name, contents in good.items() if "receipt" not in name}
    assert {n: c for n, c in outputs(copy).items() if "receipt" not in n} == kept
    tried(PART, "A byte flipped in the cached object of a model, which `dvc checkout` brings back",
          "evaluate refuses, by hand and under DVC", "dvc checkout says nothing")  # fmt: skip
    tried(PART, "Bytes flipped in objects of the cache, in a model and in data, then `make mend`",
          "exactly these are removed, a line each; `dvc repro` makes them again: dvc.lock equal"
          " byte for byte, git status clean", "before, the stages refuse")  # fmt: skip
