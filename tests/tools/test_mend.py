"""`make mend` repairs what a kill or a corrupt byte left behind, and changes nothing else."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.clones import ROOT
from lab import repository
from lab.files import InputError
from tests.conftest import Program
from tools import mend

RWLOCK = Path(".dvc/tmp/rwlock")
CACHE = Path(".dvc/cache/files/md5")
MD5 = hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
LOCK = f"""schema: '2.0'
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
      md5: {MD5}
      size: 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a committed dvc.lock, the output that it names, and DVC's cache."""
    monkeypatch.chdir(tmp_path)
    for name, value in repository.environment().items():
        monkeypatch.setenv(name, value)
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    Path("dvc.lock").write_text(LOCK)
    Path("model").write_bytes(b"abc")
    cache(MD5).write_bytes(b"abc")
    RWLOCK.parent.mkdir()
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-f", "."], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def cache(name: str) -> Path:
    """The path of an object in DVC's cache."""
    path = CACHE / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but git's."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in paths if ".git" not in path.parts}


def removed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The paths that `make mend` says it removed."""
    *lines, last = done.stdout.splitlines()
    assert last == "`make repro` makes again what is missing" and not done.returncode
    end = ", which was damaged or never complete"
    assert all(line.startswith("removed ") and line.endswith(end) for line in lines)
    return [line.removeprefix("removed ").removesuffix(end) for line in lines]


def test_intact_files_are_left_alone(folder: Path, in_process: Program) -> None:
    RWLOCK.write_text("{}")
    Path("dvc.lock").write_text(LOCK.replace("seed: 1", "seed: 2"))  # as after an experiment
    before = contents(folder)
    assert in_process(mend).stdout == ""
    assert in_process(mend, "--damaged").stdout == "nothing is damaged\n"
    assert contents(folder) == before


def test_a_dvc_lock_cut_anywhere_is_restored_or_valid_for_dvc() -> None:
    restored = 0
    for cut in range(len(LOCK)):
        Path("dvc.lock").write_text(LOCK[:cut])
        mend.mend_lock()
        text = Path("dvc.lock").read_text()
        assert text == LOCK or mend.is_lock(text)
        restored += text == LOCK
    assert len(LOCK) / 4 < restored < len(LOCK)


def test_an_rwlock_that_is_no_json_is_removed(in_process: Program) -> None:
    for text in ("", "{", "[]", "\0"):
        RWLOCK.write_text(text)
        in_process(mend)
        assert not RWLOCK.exists()


def test_damaged_objects_and_outputs_are_removed(in_process: Program) -> None:
    cache(MD5).write_bytes(b"abd")
    assert removed(in_process(mend, "--damaged")) == [str(cache(MD5))]
    assert not cache(MD5).exists() and Path("model").exists()
    Path("model").write_bytes(b"abd")
    assert removed(in_process(mend, "--damaged")) == ["model"]
    assert not Path("model").exists()


def test_the_temporary_file_of_a_killed_write_is_removed(in_process: Program) -> None:
    temporary, complete = Path("results/mlp/.history.csv.a1b2"), Path("results/mlp/history.csv")
    temporary.parent.mkdir(parents=True)
    for path in (temporary, complete):
        path.write_text("half")
    assert removed(in_process(mend, "--damaged")) == [str(temporary)]
    assert complete.exists() and not temporary.exists()


def test_a_damaged_list_of_a_cached_folder_is_removed(in_process: Program) -> None:
    files = b'[{"md5": "%s", "relpath": "a"}]' % MD5.encode()
    path = cache(hashlib.md5(files, usedforsecurity=False).hexdigest() + ".dir")
    path.write_bytes(files)
    assert in_process(mend, "--damaged").stdout == "nothing is damaged\n"
    path.write_bytes(files + b" ")
    assert removed(in_process(mend, "--damaged")) == [str(path)]
    assert not path.exists()


def test_dvc_is_recognized_by_its_command_line() -> None:
    for line in ("python /bin/dvc repro", "/bin/python -m dvc exp run", "/bin/dvc queue start"):
        assert mend.is_dvc(line.split())
    for line in ("python -m stages.train mlp", "vi dvc.yaml", "git log -- some dvc"):
        assert not mend.is_dvc(line.split())


def test_nothing_is_removed_while_dvc_runs_in_this_folder(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # A process whose command line is that of DVC. It says when it has started.
    command = [sys.executable, "-c", "print(flush=True); input()", "dvc"]
    processes = [
        subprocess.Popen(
            command, cwd=folder, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for folder in (tmp_path_factory.mktemp("elsewhere"), Path.cwd())
    ]
    elsewhere, here = processes
    try:
        for process in processes:
            assert process.stdout.readline()
        with pytest.raises(InputError, match=f"DVC is at work here as process {here.pid}"):
            mend.refuse_beside_dvc("mend")
        here.communicate()
        assert elsewhere.poll() is None
        mend.refuse_beside_dvc("mend")  # a process of another folder does not count
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_wrong_parameters_are_refused_before_anything_is_removed(in_process: Program) -> None:
    Path("params.yaml").write_text("seed: one\n")
    RWLOCK.write_text("")
    done = in_process(mend)
    assert done.returncode == 2 and "params.yaml" in done.stderr
    assert RWLOCK.exists()
