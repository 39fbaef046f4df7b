"""Many at once: experiments from a queue, and recorders, in a store that is not there yet."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lab import files
from lab.params import MODELS
from tests.conftest import Clone

pytestmark = pytest.mark.slow
PART = "3. Load"
MODEL = "linear_regression"


def runs(folder: Path) -> dict[str, list[Run]]:
    """The runs of each model in the folder's store, which is whole."""
    database = folder / "mlflow.db"
    with sqlite3.connect(database) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()
    client = MlflowClient(f"sqlite:///{database}")
    return {
        experiment.name: list(client.search_runs([experiment.experiment_id]))
        for experiment in client.search_experiments()
        if experiment.name != "Default"
    }


def require_every_metric(folder: Path, run: Run) -> None:
    """The run's metrics are, epoch by epoch, those of the table that is among its artifacts."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    history = files.read_csv(artifacts / "history.csv")
    assert len(history) == int(run.data.params["epochs"])
    for key in set(history[0]) - {"epoch"}:
        found = client.get_metric_history(run.info.run_id, key)
        expected = [(row["epoch"], row[key]) for row in history]
        assert sorted((metric.step, metric.value) for metric in found) == expected
    final = files.read_json(artifacts / "metrics.json")
    assert final.items() <= run.data.metrics.items()


def test_a_queue_with_four_at_a_time_into_a_fresh_store_loses_nothing(
    copy: Clone, full: bool, tried: Callable[..., None]
) -> None:
    number = 16 if full else 4
    rates = [f"{n / 100}" for n in range(1, number + 1)]
    copy.environment["OMP_NUM_THREADS"] = "1"
    # More than one epoch where that takes no time.
    copy.edit({"  epochs: 1\n  batch_size: 10\n": "  epochs: 3\n  batch_size: 10\n"})
    copy.commit("three epochs")
    copy.run("dvc", "exp", "run", "--queue", "-S", f"lr={','.join(rates)}")
    assert not (copy.folder / "mlflow.db").exists()
    copy.run("dvc", "queue", "start", "--jobs", "4")
    deadline = time.monotonic() + 1800
    while "Queued" in (status := copy.run("dvc", "queue", "status")) or "Running" in status:
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status.count("Success") == number, status
    found = runs(copy.folder)
    assert sorted(found) == sorted(MODELS)
    for model in MODELS:
        assert {run.info.status for run in found[model]} == {"FINISHED"}
        assert sorted(run.data.params["lr"] for run in found[model]) == sorted(rates)
        assert len({run.data.tags["DVC_EXP_NAME"] for run in found[model]}) == number
        for run in found[model]:
            require_every_metric(copy.folder, run)
    assert not list(copy.folder.glob(".dvc/tmp/recording/*/*"))
    assert not copy.run("git", "status", "--porcelain")
    tried(
        PART,
        f"{number} queued experiments, four at a time, into a store that does not exist",
        f"all {3 * number} runs FINISHED, each once, with every metric of every epoch;"
        " the database is whole",
    )


def at_once(number: int, start: Callable[[int], subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """What becomes of this many processes that are started together: exit status and errors."""
    processes = [start(n) for n in range(number)]
    errors = [process.communicate()[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, errors, strict=True)]


def test_eight_recorders_that_meet_at_a_fresh_store_all_record(
    finished: Clone, full: bool, tried: Callable[..., None], tmp_path: Path
) -> None:
    # A folder each, as queued experiments have: in one they would wait for one another.
    small = tmp_path / "small"
    shutil.copytree(
        finished.folder, small, symlinks=True,
        ignore=shutil.ignore_patterns(
            "mlflow.db*", "mlartifacts", "tmp", "cache", "fashion_mnist", "softmax*", "mlp"
        ),
    )  # fmt: skip
    folders = [Path(shutil.copytree(small, tmp_path / f"{n}", symlinks=True)) for n in range(8)]
    rounds = 5 if full else 1
    for number in range(rounds):
        root = tmp_path / f"root{number}"
        root.mkdir()

        def record(n: int, root: Path = root) -> subprocess.Popen[str]:
            return subprocess.Popen(
                ["python", "-m", "stages.record", MODEL], cwd=folders[n],
                env=finished.environment | {"DVC_ROOT": str(root), "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

        assert at_once(8, record) == [(0, "")] * 8
        found = runs(root)
        assert [(model, len(of_model)) for model, of_model in found.items()] == [(MODEL, 8)]
        for run in found[MODEL]:
            assert run.info.status == "FINISHED"
            require_every_metric(root, run)
        receipts = {files.sha256(folder / f"results/{MODEL}/receipt.json") for folder in folders}
        assert len(receipts) == 1
        assert not list(root.glob(".dvc/tmp/recording/*/*"))

    def without_the_lock(_: int) -> subprocess.Popen[str]:
        script = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
        command = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/alone.db"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    lost = sum(status != 0 for status, _ in at_once(8, without_the_lock))
    assert lost
    tried(
        PART,
        "eight processes record at once into a store that does not exist",
        "8 of 8 are recorded, whole",
        "of eight that let MLflow create it, not all can",
        times=rounds,
    )
