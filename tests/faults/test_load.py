"""Many recorders at the same time, in a store that does not exist yet."""

import itertools
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lab.common import files
from tests import servers
from tests.conftest import Clone
from tests.servers import FORKS, MODELS, Stage

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault.with_args, "3. Load")
MODEL = "linear_regression"


def require_runs(folder: Path, models: tuple[str, ...], number: int) -> dict[str, list[Run]]:
    """The database is whole. It has this number of complete runs for each of the models only."""
    database = folder / "mlflow.db"
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    store = f"sqlite:///{database}"
    experiments = MlflowClient(store).search_experiments()
    assert sorted(e.name for e in experiments) == sorted(["Default", *models])
    runs = {model: servers.runs(store, model) for model in models}
    for run in itertools.chain(*runs.values()):
        assert run.info.status == "FINISHED"
        servers.require_every_metric(store, run)
    assert [len(of_model) for of_model in runs.values()] == [number] * len(models)
    assert not list(folder.glob(".dvc/tmp/recording/*/*"))
    return runs


@fault(
    "experiments from a queue, four at a time, into a store that does not exist",
    "one FINISHED run of each, with every metric of every epoch; the database is whole",
)
@pytest.mark.sample(0)  # test_diverged.py has a small queue
def test_a_queue_that_starts_without_a_store_loses_nothing(
    clone: Clone, times: Callable[[int], None]
) -> None:
    number = 16
    rates = [f"{n / 100}" for n in range(1, number + 1)]
    clone.environment["OMP_NUM_THREADS"] = "1"
    clone.forget_runs()
    # More than one epoch where that takes no time.
    clone.edit({"  epochs: 1\n  batch_size: 10\n": "  epochs: 3\n  batch_size: 10\n"})
    clone.commit("three epochs")
    clone.run("dvc", "exp", "run", "--queue", "-S", f"lr={','.join(rates)}")
    assert not (clone.folder / "mlflow.db").exists()
    clone.run("dvc", "queue", "start", "--jobs", "4")
    deadline = time.monotonic() + 1800
    while re.search("Queued|Running", status := clone.run("dvc", "queue", "status")):
        assert time.monotonic() < deadline
        time.sleep(10)
    assert status.count("Success") == number, status
    for runs in require_runs(clone.folder, MODELS, number).values():
        assert sorted(run.data.params["lr"] for run in runs) == sorted(rates)
        assert len({run.data.tags["DVC_EXP_NAME"] for run in runs}) == number
    assert not clone.run("git", "status", "--porcelain")
    times(number)


def create_store(uri: str) -> None:
    MlflowClient(uri).search_experiments()


@fault(
    "several processes record at the same time into a store that does not exist",
    "all are recorded completely; the database is whole",
    "if MLflow creates the store without our lock, some of eight processes fail",
)
def test_recorders_that_start_without_a_store_all_record(
    finished: Clone, run_all: bool, tmp_path: Path, times: Callable[[int], None]
) -> None:
    number = 8 if run_all else 4
    rounds = 5 if run_all else 1
    folders = servers.copies(finished, tmp_path, number)
    for n in range(rounds):
        root = tmp_path / f"root{n}"
        root.mkdir()
        store = {"DVC_ROOT": str(root), "MLFLOW_TRACKING_URI": ""}
        recorders = [Stage(folder, "record", MODEL, **store) for folder in folders]
        assert [recorder.end() for recorder in recorders] == [(0, "")] * number
        require_runs(root, (MODEL,), number)
        receipts = {files.sha256(folder / f"results/{MODEL}/receipt.json") for folder in folders}
        assert len(receipts) == 1
    uri = f"sqlite:///{tmp_path}/unlocked.db"
    unlocked = [FORKS.Process(target=create_store, args=[uri]) for _ in range(number)]
    for process in unlocked:
        process.start()
    for process in unlocked:
        process.join()
    assert any(process.exitcode for process in unlocked)
    times(rounds)
