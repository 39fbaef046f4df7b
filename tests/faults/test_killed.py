"""The plug is pulled anywhere in `dvc repro`; `make repro` comes to the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from lab import files, integrity
from tests.conftest import Clone
from tests.faults.conftest import copy_of

pytestmark = pytest.mark.slow
PART = "1. Killed anywhere"
MODEL = "linear_regression"
# What a user types, without building the environment, which is this process's.
REPRO = ("make", "repro", "SOURCES=true", "STAMP=/dev/null")


@pytest.fixture(scope="module")
def small(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """One model of the three, run undisturbed, its results committed."""
    clone = copy_of(finished, tmp_path_factory.mktemp("small") / "copy")
    path = clone.folder / "dvc.yaml"
    definition = YAML().load(path)
    for name in ("softmax_regression", "mlp"):
        del definition["vars"][0]["models"][name]
    del definition["stages"]["download_fashion_mnist"], definition["plots"]
    YAML().dump(definition, path)
    for name in ("dvc.lock", "data/fashion_mnist"):
        whole = clone.folder / name
        shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
    afresh(clone)
    clone.run(*REPRO)
    clone.commit("one model")
    return clone


def afresh(clone: Clone) -> None:
    """As a new clone of what is committed."""
    for name in ("data/regression", ".dvc/cache", ".dvc/tmp", "mlartifacts"):
        shutil.rmtree(clone.folder / name, ignore_errors=True)
    for path in [*clone.folder.glob("mlflow.db*"), *clone.folder.glob("results/*/.*")]:
        path.unlink()
    clone.run("git", "clean", "--quiet", "-fdX", "results")


def outputs(clone: Clone) -> dict[str, str]:
    """The digest of dvc.lock and of all that the stages wrote."""
    found = [*clone.folder.glob("data/regression/*"), *clone.folder.glob(f"results/{MODEL}/[!.]*")]
    found.append(clone.folder / "dvc.lock")
    return {path.relative_to(clone.folder).as_posix(): files.sha256(path) for path in found}


def statuses(clone: Clone) -> list[str]:
    """Of all runs in the store."""
    path = clone.folder / "mlflow.db"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as db:
        return sorted(status for (status,) in db.execute("SELECT status FROM runs"))


def start(clone: Clone, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=clone.folder, env=clone.environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_repro_killed_at_random_moments_is_made_good_by_make_repro(
    small: Clone, full: bool, tried: Callable[..., None]
) -> None:
    expected = outputs(small)
    afresh(small)
    began = time.monotonic()
    small.run("dvc", "repro", "--quiet")
    duration = time.monotonic() - began
    assert outputs(small) == expected  # undisturbed, the control
    seed = random.Random(2026)
    mended = 0
    times = 100 if full else 4
    for i in range(times):
        if again := i % 3 == 2:  # all is there, and made anew
            process = start(small, "dvc", "repro", "--force")
        else:
            afresh(small)
            process = start(small, "dvc", "repro")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seed.uniform(0.2, duration))
        kill_group(process)
        done = small.try_(*REPRO)
        assert done.returncode == 0, (i, done.stdout, done.stderr)
        mended += "half-written" in done.stdout
        assert outputs(small) == expected, i
        assert not small.run("git", "status", "--porcelain"), i
        assert "RUNNING" not in statuses(small)
        if not again:
            assert statuses(small).count("FINISHED") == 1
    tried(
        PART, "`dvc repro` and all its processes killed at a random moment",
        "`make repro` came to the same dvc.lock and outputs, with each result recorded once;"
        f" DVC's own files had to be mended first in {mended} of them", "the next rows", times,
    )  # fmt: skip


@pytest.mark.parametrize("contents", [b"", b'{"write": {"/a/b": '])
def test_a_half_written_rwlock_is_removed_by_make_repro_alone(
    small: Clone, contents: bytes, tried: Callable[..., None]
) -> None:
    rwlock = small.folder / ".dvc/tmp/rwlock"
    small.run("dvc", "repro")
    rwlock.write_bytes(contents)
    assert small.try_("dvc", "repro", "--force").returncode != 0  # the control: DVC is wedged
    assert rwlock.read_bytes() == contents
    assert "removed .dvc/tmp/rwlock" in small.run(*REPRO)
    assert small.run("dvc", "status").strip() == "Data and pipelines are up to date."
    tried(
        PART, "DVC's rwlock left empty or cut short", "`make repro` removed it, said so and ran",
        "`dvc repro` alone fails until it is removed",
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_half_written_dvc_lock_is_restored(
    small: Clone, share: float, tried: Callable[..., None]
) -> None:
    small.run("dvc", "repro")
    expected, path = outputs(small), small.folder / "dvc.lock"
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    small.run(*REPRO)
    assert outputs(small) == expected
    tried(PART, "dvc.lock cut short", "`make repro` came to the committed one again")


def test_while_dvc_lives_nothing_is_mended(small: Clone, tried: Callable[..., None]) -> None:
    small.run("dvc", "repro")
    process = start(small, "dvc", "repro", "--force")
    stage_of(process)
    rwlock = small.folder / ".dvc/tmp/rwlock"
    before = rwlock.read_bytes()
    try:
        rwlock.write_bytes(b"")
        done = small.try_("python", "-m", "tools.mend")
        assert done.returncode == 1
        assert done.stderr.startswith("error: cannot remove .dvc/tmp/rwlock: DVC is at work here")
        assert str(process.pid) in done.stderr and len(done.stderr.splitlines()) == 1
        rwlock.write_bytes(before)
        assert process.wait() == 0
    finally:
        kill_group(process)
        rwlock.unlink(missing_ok=True)
    tried(
        PART, "DVC's rwlock empty while DVC is at work", "nothing is removed, the process is named",
        "once that process has ended it is",
    )  # fmt: skip


def stage_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The training that this DVC started."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "stages.train" in child.cmdline():
                    return child
        time.sleep(0.05)
    raise AssertionError("no training was started")


def taken(lock: Path) -> bool:
    """Whether a process holds the lock, whose file is there a moment before."""
    if not lock.exists():
        return False
    try:
        FileLock(lock).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def waiting(small: Clone, second: subprocess.Popen[bytes]) -> bool:
    """Whether the training of this DVC is there and waits: it has written nothing for a while."""
    stage_of(second)
    time.sleep(10)
    return second.poll() is None and not (small.folder / f"results/{MODEL}/history.csv").exists()


@pytest.mark.parametrize("protected", [True, False])
def test_a_stage_that_outlives_its_dvc_is_waited_for(
    small: Clone, tmp_path: Path, protected: bool, tried: Callable[..., None]
) -> None:
    clone = copy_of(small, tmp_path / "copy")
    path = clone.folder / "stages/__init__.py"
    if not protected:  # the control
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace(
                "        with alone(", "        with __import__('contextlib').nullcontext("
            )
        )
    expected = outputs(clone)
    first = start(clone, "dvc", "repro", "--force", "--single-item", f"train@{MODEL}")
    stage = stage_of(first)
    while protected and not taken(clone.folder / f".dvc/tmp/stages/train_{MODEL}.lock"):
        time.sleep(0.05)
    stage.suspend()  # so that it can neither end itself nor go on
    first.kill()
    first.wait()
    second = start(clone, "dvc", "repro", "--force", "--single-item", f"train@{MODEL}")
    try:
        if not protected:
            assert second.wait(100) == 0  # it wrote, while the first was still to write
            return
        assert waiting(clone, second)
        stage.resume()
        assert second.wait(100) == 0
        psutil.wait_procs([stage], timeout=10)  # its new parent may be slow to notice its end
        assert not stage.is_running()
        assert outputs(clone) == expected
    finally:
        kill_group(second)
        kill_group(first)
    tried(
        PART, "`dvc` alone killed while its stage lives on", "the next start waits for the stage,"
        " which ends itself within a second", "without the lock both write",
    )  # fmt: skip


@pytest.mark.parametrize("how", [("-S", "lr=0.01"), ("--temp", "-S", "lr=0.02")])
def test_a_killed_experiment_leaves_nothing_in_the_way(
    small: Clone, how: tuple[str, ...], tried: Callable[..., None]
) -> None:
    small.run(*REPRO)
    expected, experiment = outputs(small), ("dvc", "exp", "run", *how)
    process = start(small, *experiment)
    stage_of(process)
    processes = psutil.Process(process.pid).children(recursive=True)
    kill_group(process)
    for child in processes:  # DVC gives some a group of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(processes)
    if "--temp" not in how:  # the control
        small.run("git", "checkout", "--quiet", ".")
        assert "lr: 0.01" in (small.folder / "params.yaml").read_text(encoding="utf-8")
    small.run("git", "checkout", "--quiet", "HEAD", ".")
    small.run(*REPRO)
    assert outputs(small) == expected
    assert not small.run("git", "status", "--porcelain")
    small.run(*experiment)
    small.run("git", "checkout", "--quiet", "HEAD", ".")
    small.run(*REPRO)
    assert outputs(small) == expected
    tried(
        PART, "`dvc exp run` killed while it trains, in the workspace and with --temp",
        "`git checkout HEAD . && make repro` comes to the committed state, and the next experiment"
        " runs", "`git checkout .` leaves the parameters that DVC has staged",
    )  # fmt: skip


def test_the_lock_agrees_with_the_outputs(small: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above compare is what dvc.lock says."""
    monkeypatch.chdir(small.folder)
    for path, md5 in integrity.outputs().items():
        assert integrity.md5(path) == md5
