"""`make repair` repairs what a kill left half-written, and changes nothing else.

What it removes with --damaged is in tests/faults/test_corruption.py.
"""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Clone, Program
from tools import repair
from tracking.repository import ROOT

RWLOCK, LOCK = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
LOCKED = """schema: '2.0'
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
      md5: 900150983cd24fb0d6963f7d28e17f72
      size: 3
"""


@pytest.fixture(autouse=True)
def _repository(git: Clone) -> None:
    """Make the current folder a repository with a lock, all committed."""
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    LOCK.write_text(LOCKED)
    RWLOCK.parent.mkdir(parents=True)
    git.commit("all")


def test_a_dvc_lock_cut_anywhere_is_restored_or_valid_for_dvc() -> None:
    restored = 0
    for cut in range(len(LOCKED)):
        LOCK.write_text(LOCKED[:cut])
        repair.repair_lock()
        text = LOCK.read_text()
        assert text == LOCKED or repair.is_lock(text)
        restored += text == LOCKED
    assert len(LOCKED) / 4 < restored < len(LOCKED)


def test_a_dvc_lock_that_is_not_committed_stays_or_is_removed(git: Clone) -> None:
    git.run("git", "rm", "--quiet", "--cached", str(LOCK))
    git.run("git", "commit", "--quiet", "--message", "no lock")
    repair.repair_lock()
    assert LOCK.read_text() == LOCKED
    LOCK.write_text(LOCKED[:20])
    repair.repair_lock()
    assert not LOCK.exists()


def test_an_rwlock_that_is_no_json_is_removed(in_process: Program) -> None:
    for text in ("", "{", "[]", "\0"):
        RWLOCK.write_text(text)
        in_process(repair)
        assert not RWLOCK.exists()
    RWLOCK.write_text("{}")
    assert in_process(repair).stdout == "" and RWLOCK.exists()


def test_dvc_is_recognized_by_its_command_line() -> None:
    for line in ("python /bin/dvc repro", "python -m dvc exp run", "python -m tools.repro"):
        assert repair.is_dvc(line.split())
    for line in ("python -m stages.train mlp", "vi dvc.yaml", "git log -- some dvc"):
        assert not repair.is_dvc(line.split())
