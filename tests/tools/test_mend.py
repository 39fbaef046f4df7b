"""What a kill or a lost byte leaves is mended; what is in order is let be."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.clones import ROOT
from lab import repository
from lab.files import InputError
from tools import mend

LOCK = """schema: '2.0'
stages:
  generate:
    cmd: python -m stages.generate
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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a committed dvc.lock and what it names."""
    monkeypatch.chdir(tmp_path)
    for name, value in repository.environment().items():
        monkeypatch.setenv(name, value)
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    Path("dvc.lock").write_text(LOCK)
    Path("model").write_bytes(b"abc")
    cached = Path(".dvc/cache/files/md5/90/0150983cd24fb0d6963f7d28e17f72")
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"abc")
    Path(".dvc/tmp").mkdir()
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-f", "."], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mend", *arguments])
    mend.main()


def contents(folder: Path) -> dict[Path, bytes]:
    """Of all files but git's."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in found if ".git" not in path.parts}


def test_what_is_in_order_is_let_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".dvc/tmp/rwlock").write_text("{}")
    changed = LOCK.replace("seed: 1", "seed: 2")  # as after an experiment
    Path("dvc.lock").write_text(changed)
    before = contents(folder)
    run(monkeypatch)
    assert capsys.readouterr().out == ""
    run(monkeypatch, "--damaged")
    assert capsys.readouterr().out == "nothing is damaged\n"
    assert contents(folder) == before


def test_wherever_dvc_lock_is_cut_it_is_restored_or_of_use_to_dvc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restored = 0
    for cut in range(len(LOCK)):
        Path("dvc.lock").write_text(LOCK[:cut])
        mend.mend_lock()
        found = Path("dvc.lock").read_text()
        assert found == LOCK or mend.is_lock(found)
        restored += found == LOCK
    assert len(LOCK) / 4 < restored < len(LOCK)


def test_an_rwlock_that_is_no_json_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    rwlock = Path(".dvc/tmp/rwlock")
    for text in ("", "{", "[]", "\0"):
        rwlock.write_text(text)
        run(monkeypatch)
        assert not rwlock.exists()


def test_damaged_objects_and_outputs_are_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cached,) = Path(".dvc/cache/files/md5").glob("*/*")
    cached.write_bytes(b"abd")
    run(monkeypatch, "--damaged")
    assert not cached.exists() and Path("model").exists()
    Path("model").write_bytes(b"abd")
    run(monkeypatch, "--damaged")
    assert not Path("model").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"removed {cached}, which was damaged or never complete"
    assert printed[2] == "removed model, which was damaged or never complete"
    assert printed[1] == printed[3] == "`make repro` makes again what is missing"


def test_what_a_killed_write_left_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    left, other = Path("results/mlp/.history.csv.a1b2"), Path("results/mlp/history.csv")
    left.parent.mkdir(parents=True)
    for path in (left, other):
        path.write_text("half")
    run(monkeypatch, "--damaged")
    assert other.exists() and not left.exists()


def test_a_folder_in_the_cache_is_known_by_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = b'[{"md5": "900150983cd24fb0d6963f7d28e17f72", "relpath": "a"}]'
    name = hashlib.md5(listed, usedforsecurity=False).hexdigest()
    path = Path(".dvc/cache/files/md5", name[:2], f"{name[2:]}.dir")
    path.parent.mkdir()
    path.write_bytes(listed)
    run(monkeypatch, "--damaged")
    assert path.exists()
    path.write_bytes(listed + b" ")
    run(monkeypatch, "--damaged")
    assert not path.exists()


@pytest.mark.parametrize(
    ("line", "dvc"),
    [
        ("python /venv/bin/dvc repro", True),
        ("/venv/bin/python -m dvc exp run", True),
        ("/venv/bin/dvc queue start", True),
        ("python -m stages.train mlp", False),
        ("vi dvc.yaml", False),
        ("git log -- some dvc", False),
    ],
)
def test_dvc_is_known_by_its_command_line(line: str, dvc: bool) -> None:
    assert mend.is_dvc(line.split()) is dvc


def test_beside_a_living_dvc_nothing_is_removed(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def living(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(60)", "dvc"]
        return subprocess.Popen(command, cwd=folder, env=os.environ)

    elsewhere, here = living(tmp_path_factory.mktemp("elsewhere")), living(Path.cwd())
    try:
        time.sleep(0.5)
        with pytest.raises(InputError, match=f"DVC is at work here as process {here.pid}"):
            mend.refuse_beside_dvc("mend")
        here.kill()
        here.wait()
        mend.refuse_beside_dvc("mend")  # another folder's does not count
    finally:
        for process in (elsewhere, here):
            process.kill()
            process.wait()


def test_wrong_parameters_are_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text("seed: one\n")
    Path(".dvc/tmp/rwlock").write_text("")
    with pytest.raises(InputError, match=r"params\.yaml"):
        run(monkeypatch)
    assert Path(".dvc/tmp/rwlock").exists()
