"""A worker dies or hangs: all end, and the training continues with another number of workers."""

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from lab import params, schema, workers
from lab.common import workspace
from lab.common.files import InputError
from tests.conftest import Clone, contents
from tracking.repository import ROOT

pytestmark = pytest.mark.slow
fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "13. Several workers")
MODEL = "linear_regression"
RESULTS = schema.results(MODEL)
TIMEOUT = 5.0  # seconds instead of 40
# A worker that saves a checkpoint at every step, and gets a signal at one of them.
WORKER = f"""
import itertools, os, signal, sys
import stages
from lab import checkpoints, workers
from stages import train

rank, step, name = sys.argv[1:]
checkpoints.INTERVAL, workers.TIMEOUT = 0, {TIMEOUT}
due, number = checkpoints.Checkpoint.due, itertools.count(1)

def signalled(checkpoint):
    if os.environ["RANK"] == rank and next(number) == int(step):
        os.kill(os.getpid(), getattr(signal, name))
    return due(checkpoint)

checkpoints.Checkpoint.due = signalled
sys.argv = ["train.py", "{MODEL}"]
stages.run(train.main)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code, data and parameters for a training of two epochs; the current one."""
    monkeypatch.setattr(workers, "TIMEOUT", TIMEOUT)
    monkeypatch.setenv("PATH", Clone(tmp_path, tmp_path).environment["PATH"])
    monkeypatch.chdir(tmp_path)
    for name in workspace.CODE:
        shutil.copytree(ROOT / name, name)
    parameters = YAML().load(ROOT / "tests/params.yaml")
    parameters[MODEL] |= {"epochs": 2, "batch_size": 50}
    YAML().dump(parameters, tmp_path / "params.yaml")
    p = params.load()
    p.dataset(MODEL).prepare(schema.folder("regression_data"), p)
    return tmp_path


def launch(n: int, rank: int, step: int, name: str, program: str = WORKER) -> None:
    Path("worker.py").write_text(program)
    workers.launch(["python", "-m", "worker", str(rank), str(step), name], n)


@fault(
    "one of three workers got {name} in a step",
    "all ended within a minute, with one line that names it; two others produced the same bytes",
    "one worker trains to these bytes",
)
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("name", "rank", "step", "reason"),
    [
        ("SIGKILL", 0, 7, "worker 0 of 3 was ended by SIGKILL"),
        ("SIGKILL", 2, 27, "worker 2 of 3 was ended by SIGKILL"),
        ("SIGSTOP", 0, 20, f"worker 0 of 3 did not answer for {TIMEOUT:g} s"),
        ("SIGSTOP", 1, 21, f"worker 1 of 3 did not answer for {TIMEOUT:g} s"),
    ],
)
def test_all_end_and_another_number_of_workers_continues(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    rank: int,
    step: int,
    reason: str,
) -> None:
    begin, before = time.monotonic(), set(psutil.Process().children(recursive=True))
    with pytest.raises(InputError, match=f"^{reason}; run it again, and it goes on from the check"):
        launch(3, rank, step, name)
    assert time.monotonic() - begin < 60
    assert set(psutil.Process().children(recursive=True)) <= before and not RESULTS.exists()
    assert capfd.readouterr().err == ""
    launch(2, -1, 0, "")
    assert "continuing from a checkpoint" in capfd.readouterr().err
    found = contents(RESULTS)
    shutil.rmtree(RESULTS)
    launch(1, -1, 0, "")  # a process without others
    assert contents(RESULTS) == found


@pytest.mark.sample(0)
def test_a_mistake_that_all_workers_share_is_told_once(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (schema.folder("regression_data") / "train.csv").write_text("x1,x2,y\n")
    with pytest.raises(SystemExit) as end:
        launch(2, -1, 0, "")
    assert end.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_a_mistake_of_one_worker_is_told_with_its_number(folder: Path) -> None:
    mistake = "os.environ['RANK'] == '1' and sys.exit('no disk')\nimport stages"
    broken = WORKER.replace("import stages", mistake, 1)
    with pytest.raises(InputError, match=r"^worker 1 of 2: no disk$"):
        launch(2, -1, 0, "", broken)
    assert "RANK" not in os.environ
