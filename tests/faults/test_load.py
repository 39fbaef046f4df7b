"""Many recorders at the same time, in a store that does not exist yet; one training diverges."""

import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lab.common import files
from stages import train
from tests import servers
from tests.conftest import Clone, Program
from tests.inputs import refusing
from tests.servers import Stage

pytestmark = pytest.mark.slow
load = partial(pytest.mark.fault.with_args, "3. Load")
diverged = partial(pytest.mark.fault.with_args, "10. Diverged training")
MODEL = "linear_regression"
ERROR = f"error: {MODEL}: training diverged: the loss is"


def require_runs(clone: Clone, number: int) -> list[Run]:
    """The store has this number of complete runs of the model, and no others that are finished."""
    assert clone.statuses().count("FINISHED") == number
    store = f"sqlite:///{clone.folder}/mlflow.db"
    runs = [run for run in servers.runs(store, MODEL) if run.info.status == "FINISHED"]
    assert len(runs) == number
    for run in runs:
        servers.require_every_metric(store, run)
    assert not list(clone.folder.glob(".dvc/tmp/recording/*/*"))
    return runs


@load(
    "a queue of 16 experiments and one that diverges, four at a time, into a store that does not"
    " exist",
    "one FINISHED run of each, with every metric of every epoch; the database is whole",
    "the one that diverges is FAILED",
)
@diverged(
    "a queue of one such experiment and good ones, several at a time",
    "this one Failed, the others are recorded",
    "those are FINISHED runs",
)
@diverged(
    "`dvc exp run` with a learning rate that is too large",
    "one line with model, epoch and step; a FAILED run with the history up to there; no output",
    "with a smaller one the run is FINISHED",
)
def test_a_queue_loses_nothing_and_goes_on_after_a_diverged_training(
    clone: Clone, run_all: bool
) -> None:
    number, jobs = (16, "4") if run_all else (1, "2")
    rates = [f"{n / 100}" for n in range(1, number + 1)]
    clone.forget_runs()
    # More than one epoch where that takes no time.
    clone.edit({"  epochs: 1\n  batch_size: 10\n": "  epochs: 3\n  batch_size: 10\n"})
    clone.commit("three epochs")
    clone.run("dvc", "exp", "run", "--queue", "-S", "lr=1000", f"record@{MODEL}")
    clone.run("dvc", "exp", "run", "--queue", "-S", f"lr={','.join(rates)}", f"record@{MODEL}")
    assert not Path("mlflow.db").exists()
    clone.run("dvc", "queue", "start", "--jobs", jobs)
    deadline = time.monotonic() + 3600
    # Until all have a result: one that is about to begin is neither queued nor running.
    results = re.compile("Success|Failed")
    # The command fails where it reads what a worker is writing.
    while len(results.findall(status := clone.try_("dvc", "queue", "status").stdout)) <= number:
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status.count("Success") == number and status.count("Failed") == 1, status
    runs = require_runs(clone, number)
    assert sorted(run.data.params["lr"] for run in runs) == sorted(rates)
    assert len({run.data.tags["DVC_EXP_NAME"] for run in runs}) == number
    assert not clone.run("git", "status", "--porcelain")

    # Too large by so little that the loss leaves the range of float32 in the third epoch.
    done = clone.try_("dvc", "exp", "run", "--name", "wild", "-S", "lr=2.0", f"train@{MODEL}")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(ERROR) and "in epoch 3" in line and "below lr = 2 may help" in line
    assert not Path(f"results/{MODEL}/model.safetensors").exists()
    store = f"sqlite:///{clone.folder}/mlflow.db"
    failed = [run for run in servers.runs(store, MODEL) if run.info.status == "FAILED"]
    assert [run.data.params["lr"] for run in failed] == ["1000.0", "2.0"]
    wild = failed[1]
    assert wild.data.tags["DVC_EXP_NAME"] == "wild" and wild.data.tags["failure"] in line
    training, validation = (
        sorted((m.step, m.value) for m in MlflowClient(store).get_metric_history(id_, key))
        for id_, key in ((wild.info.run_id, f"{name}_loss") for name in ("train", "validation"))
    )
    assert [step for step, _ in training] == [1, 2, 3]
    assert [step for step, _ in validation] == [1, 2]
    assert 1 < training[0][1] < training[1][1] < training[2][1]


@diverged("the same without a tracking server", "the same line, and that it is not recorded")
def test_without_a_tracking_server_the_line_is_the_same(
    clone: Clone, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.edit({"lr: 0.03": "lr: 1000"})
    with refusing() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        done = in_process(train, MODEL)
    warning, error = done.stderr.splitlines()
    assert warning.startswith(f"the failed run is not in MLflow: the tracking server at {address}")
    assert error.startswith(ERROR) and done.returncode == 1


@load(
    "several processes record at the same time into a store that does not exist",
    "all are recorded completely; the database is whole",
    "if MLflow creates the store without our lock, some of eight processes fail",
)
def test_recorders_that_start_without_a_store_all_record(
    finished: Clone, run_all: bool, tmp_path: Path, times: Callable[[int], None]
) -> None:
    number = 8 if run_all else 3
    rounds = 5 if run_all else 1
    folders = servers.copies(finished, tmp_path, number)
    for n in range(rounds):
        root = tmp_path / f"root{n}"
        root.mkdir()
        store = {"DVC_ROOT": str(root), "MLFLOW_TRACKING_URI": ""}
        recorders = [Stage(folder, "record", MODEL, **store) for folder in folders]
        assert [recorder.end() for recorder in recorders] == [(0, "")] * number
        require_runs(Clone(root, root), number)
        receipts = {files.sha256(folder / f"results/{MODEL}/receipt.json") for folder in folders}
        assert len(receipts) == 1
    uri = f"sqlite:///{tmp_path}/unlocked.db"
    plain = Clone(tmp_path, tmp_path)
    plain.with_forks()
    settings = plain.environment | {"MLFLOW_TRACKING_URI": uri}
    command = ["python", "-m", "mlflow", "experiments", "search"]
    unlocked = [subprocess.Popen(command, env=settings) for _ in range(number)]
    codes = [process.wait() for process in unlocked]
    assert any(codes)
    times(rounds)
