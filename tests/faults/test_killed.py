"""`dvc repro` is killed at any moment; `make repro` then produces the same bytes."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from lab.common import workspace
from stages import train
from tests.conftest import Clone, Program, contents
from tools import repair

pytestmark = pytest.mark.slow
fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "1. Killed anywhere")
MODEL = "linear_regression"
STAGES = ("prepare", "train", "evaluate", "record")
RWLOCK, LOCK = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
HISTORY = Path(f"results/{MODEL}/history.csv")
Start = Callable[..., psutil.Popen]
DEADLINE = 300  # seconds for what takes a few
# What a user types, without building the environment.
REPRO = ("make", "repro", "SOURCES=true", "STAMP=/dev/null")


@pytest.fixture(scope="module")
def one_model(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The finished pipeline with one of the three models, committed."""
    clone = finished.copy(tmp_path_factory.mktemp("one_model") / "clone")
    parameters, pipeline = clone.folder / "params.yaml", clone.folder / "dvc.yaml"
    sections, stages = YAML().load(parameters), YAML().load(pipeline)
    for name in ("softmax_regression", "mlp"):
        del sections[name], sections["models"][name]
    del sections["fashion_mnist"], stages["stages"]["download_fashion_mnist"]
    YAML().dump(sections, parameters)
    YAML().dump(stages, pipeline)
    for name in ("results/softmax_regression", "results/mlp", "data/fashion_mnist", ".dvc/cache"):
        shutil.rmtree(clone.folder / name)
    (clone.folder / LOCK).unlink()
    clone.run("dvc", "commit", "--force", "--quiet")  # writes dvc.lock and the cache
    clone.commit("one model")
    return clone


@pytest.fixture
def clone(one_model: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A copy for one test, which is the current folder."""
    copy = one_model.copy(tmp_path / "clone")
    monkeypatch.chdir(copy.folder)
    return copy


def outputs() -> dict[str, bytes]:
    """dvc.lock and all that the stages wrote, without temporary files of killed stages."""
    return contents(Path(), str(LOCK), "data/regression_data/*", f"results/{MODEL}/[!.]*")


@pytest.fixture
def start(clone: Clone) -> Iterator[Start]:
    """A function that starts a command as a user does. What it prints goes to ../log."""
    environment, processes = clone.whole(), []

    def start(*command: str) -> psutil.Popen:
        with Path("../log").open("wb") as log:
            options: Any = {"start_new_session": True, "stdout": log, "stderr": log}
            processes.append(psutil.Popen(command, env=environment, **options))
        return processes[-1]

    yield start
    for process in processes:
        kill(process)


def kill(process: psutil.Popen) -> None:
    """Kill a command and all processes that it started."""
    children = process.children(recursive=True) if process.is_running() else []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:  # DVC gives some a group of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs([process, *children])


def until(condition: Callable[[], Any]) -> Any:
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def running(stage: str) -> Any:
    """Wait for a stage to run in the current folder, or below it as a temporary experiment does."""

    def find() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline", "cwd"]):
            here = Path(process.info["cwd"] or "/").is_relative_to(Path.cwd())
            if here and f"stages.{stage}" in (process.info["cmdline"] or ()):
                return process
        return None

    return until(find)


def is_held(lock: str) -> bool:
    """Whether a stage has this lock: its file is open a moment earlier."""
    try:
        with FileLock(workspace.NOTES / "stages" / f"{lock}.lock", timeout=0):
            return False
    except Timeout:
        return True


@fault(
    "`dvc repro` and all its processes killed at a random moment",
    "`make repro` produces the same dvc.lock and outputs, with each result recorded once",
    "the next rows",
)
def test_make_repro_after_a_kill_produces_the_same_bytes(
    clone: Clone, start: Start, run_all: bool, times: Callable[[int], None]
) -> None:
    expected = outputs()
    draw = random.Random(3)
    number = 40 if run_all else 1
    for i in range(number):
        stage, seconds, forced = draw.choice(STAGES), draw.uniform(0, 5), i % 2 == 1
        if not forced:  # as in a new clone
            clone.forget_runs()
            clone.run("git", "clean", "--quiet", "-fdX", "data", "results", ".dvc")
        process = start("dvc", "repro", *["--force"] * forced)
        running(stage)
        with contextlib.suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
            process.wait(seconds)
        kill(process)
        done = clone.try_(*REPRO)
        assert done.returncode == 0, (stage, seconds, done.stdout, done.stderr)
        assert outputs() == expected, (stage, seconds)
        assert not clone.run("git", "status", "--porcelain"), (stage, seconds)
        assert "RUNNING" not in clone.statuses()
        assert forced or clone.statuses().count("FINISHED") == 1
    times(number)


@fault(
    "DVC's {path.name} {state}",
    "`make repro` repairs it and runs: dvc.lock and outputs are the same",
    "`dvc repro` fails, unless it takes dvc.lock cut short for a whole one",
)
@pytest.mark.parametrize("state", ["empty", "cut short"])
@pytest.mark.parametrize("path", [RWLOCK, LOCK])
def test_a_half_written_file_of_dvc_is_repaired(clone: Clone, path: Path, state: str) -> None:
    expected = outputs()
    RWLOCK.parent.mkdir()
    whole = LOCK.read_bytes() if path == LOCK else b'{"write": {"/a/b": {}}}'
    path.write_bytes(half := whole[: len(whole) // 2] if state == "cut short" else b"")
    valid = path == LOCK and repair.is_lock(half.decode())
    if not valid:
        assert clone.try_("dvc", "repro", "--force").returncode  # the control
        assert path.read_bytes() == half
    assert bool(re.search(f"^(removed|restored) {path}", clone.run(*REPRO), re.MULTILINE)) != valid
    assert outputs() == expected
    assert clone.run("dvc", "status").strip() == "Data and pipelines are up to date."


@fault(
    "DVC's rwlock empty while DVC is running",
    "nothing is removed, and the process is named",
    "after that process has ended, it is removed",
)
def test_nothing_is_repaired_while_dvc_is_running(start: Start, in_process: Program) -> None:
    process = start("dvc", "repro", "--force")
    running(STAGES[0]).suspend()  # DVC waits for it
    RWLOCK.write_bytes(b"")
    done = in_process(repair)
    assert done.returncode == 1 and RWLOCK.exists()
    assert done.stderr.startswith("error: cannot remove .dvc/tmp/rwlock: DVC is at work here")
    assert str(process.pid) in done.stderr and len(done.stderr.splitlines()) == 1
    with contextlib.chdir(HISTORY.parent):
        repair.refuse_beside_dvc("repair")  # DVC in another folder does not count
    kill(process)
    assert in_process(repair).stdout.startswith("removed .dvc/tmp/rwlock")  # the control


@fault(
    "`dvc` killed while its stage lives on",
    "the next `dvc repro` waits for the stage, which ends itself",
    "without the lock a second stage writes",
)
def test_a_stage_that_outlives_dvc_is_waited_for(
    start: Start, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs()
    command = ("dvc", "repro", "--force", "--single-item", f"train@{MODEL}")
    first = start(*command)
    stage = running("train")
    until(lambda: is_held(f"train_{MODEL}"))
    stage.suspend()
    first.kill()
    first.wait()
    with monkeypatch.context() as patch:  # the control
        patch.setattr(workspace, "exclusive_lock", lambda name: contextlib.nullcontext())
        assert not HISTORY.exists()
        assert in_process(train, MODEL).returncode == 0
        assert HISTORY.exists()
    second = start(*command)
    until(lambda: "waiting for another" in Path("../log").read_text())
    assert second.poll() is None and not HISTORY.exists()
    stage.resume()
    assert second.wait(DEADLINE) == 0
    stage.wait(DEADLINE)
    assert outputs() == expected


@fault(
    "`dvc exp run` killed while it trains, {where}",
    "`git checkout HEAD . && make repro` restores the committed state; the next experiment runs",
    "`git checkout .` leaves the parameters that DVC has staged",
)
@pytest.mark.sample(1)
@pytest.mark.parametrize("where", ["in the workspace", "with --temp"])
def test_a_killed_experiment_leaves_nothing_in_the_way(
    clone: Clone, start: Start, where: str
) -> None:
    expected, options = outputs(), ["--temp"] if "--temp" in where else []
    experiment = ("dvc", "exp", "run", *options, "-S", "lr=0.01", f"train@{MODEL}")
    process = start(*experiment)
    running("train")
    kill(process)
    if not options:  # the control
        clone.run("git", "checkout", "--quiet", ".")
        assert "lr: 0.01" in Path("params.yaml").read_text()
    clone.run("git", "checkout", "--quiet", "HEAD", ".")
    clone.run(*REPRO)
    assert outputs() == expected
    assert not clone.run("git", "status", "--porcelain")
    clone.run(*experiment)
