"""`make repair` repairs what a kill or a corrupt byte left behind, and changes nothing else."""

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.conftest import Clone, Program, contents
from tools import repair
from tracking.repository import ROOT


def cached(contents: bytes, suffix: str = "") -> Path:
    """The path of an object in DVC's cache."""
    md5 = hashlib.md5(contents, usedforsecurity=False).hexdigest()
    return Path(".dvc/cache/files/md5", md5[:2], f"{md5[2:]}{suffix}")


RWLOCK, LOCK, MODEL = Path(".dvc/tmp/rwlock"), Path("dvc.lock"), Path("model")
MD5 = hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
LOCKED = f"""schema: '2.0'
stages:
  train:
    cmd: python -m stages.train
    deps:
    - path: exact
      hash: md5
      md5: 0a6f36fa1c75a89a8bb7ae3a4c48a1de.dir
    params:
      params.yaml:
        seed: 1
    outs:
    - path: model
      hash: md5
      md5: {MD5}
      size: 3
"""
FOLDER = f'[{{"md5": "{MD5}", "relpath": "a"}}]'.encode()  # how DVC lists a folder's files
INTACT = {
    LOCK: LOCKED.encode(),
    MODEL: b"abc",
    Path("results/mlp/history.csv"): b"complete",
    cached(b"abc"): b"abc",
    cached(FOLDER, ".dir"): FOLDER,
    RWLOCK: b"{}",
}


@pytest.fixture(autouse=True)
def _repository(git: Clone) -> None:
    """Make the current folder a repository with these files, all committed."""
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    for path, data in INTACT.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    git.commit("all")


def test_intact_files_are_left_alone(in_process: Program) -> None:
    LOCK.write_text(LOCKED.replace("seed: 1", "seed: 2"))  # as after an experiment
    before = contents(Path())
    assert in_process(repair).stdout == ""
    assert in_process(repair, "--damaged").stdout == "nothing is damaged\n"
    assert contents(Path()) == before


@pytest.mark.parametrize(
    "path", [MODEL, cached(b"abc"), cached(FOLDER, ".dir"), Path("results/mlp/.history.csv.a1b2")]
)
def test_damaged_and_temporary_files_are_removed(path: Path, in_process: Program) -> None:
    path.write_bytes(b"half")
    expected = contents(Path())
    del expected[str(path)]
    removed, last = in_process(repair, "--damaged").stdout.splitlines()
    assert removed == f"removed {path}, which was damaged or never complete"
    assert last == "`make repro` makes again what is missing"
    assert contents(Path()) == expected


def test_a_dvc_lock_cut_anywhere_is_restored_or_valid_for_dvc() -> None:
    restored = 0
    for cut in range(len(LOCKED)):
        LOCK.write_text(LOCKED[:cut])
        repair.repair_lock()
        text = LOCK.read_text()
        assert text == LOCKED or repair.is_lock(text)
        restored += text == LOCKED
    assert len(LOCKED) / 4 < restored < len(LOCKED)


def test_an_rwlock_that_is_no_json_is_removed(in_process: Program) -> None:
    for text in ("", "{", "[]", "\0"):
        RWLOCK.write_text(text)
        in_process(repair)
        assert not RWLOCK.exists()


def test_dvc_is_recognized_by_its_command_line() -> None:
    for line in ("python /bin/dvc repro", "python -m dvc exp run", "python -m tools.repro"):
        assert repair.is_dvc(line.split())
    for line in ("python -m stages.train mlp", "vi dvc.yaml", "git log -- some dvc"):
        assert not repair.is_dvc(line.split())
