"""A training that comes to nothing says where, is recorded as FAILED, and stops nobody else."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest

from lab.params import MODELS
from tests.conftest import Clone

pytestmark = pytest.mark.slow
PART = "10. Diverged training"


def runs(clone: Clone) -> list[dict[str, Any]]:
    """All runs with parameters, tags and the steps of each metric."""
    found = []
    with contextlib.closing(sqlite3.connect(clone.folder / "mlflow.db")) as db:
        for run_id, status, model in db.execute(
            "SELECT run_uuid, status, e.name FROM runs JOIN experiments e USING (experiment_id)"
        ).fetchall():
            run: dict[str, Any] = {"status": status, "model": model, "metrics": {}}
            for table in ("params", "tags"):
                query = f"SELECT key, value FROM {table} WHERE run_uuid = ?"  # noqa: S608
                run |= dict(db.execute(query, [run_id]))
            for key, step, value in db.execute(
                "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY step", [run_id]
            ):
                run["metrics"].setdefault(key, {})[step] = value
            found.append(run)
    return found


def test_a_diverged_training_is_a_failed_run_with_its_history(
    copy: Clone, tried: Callable[..., None]
) -> None:
    copy.edit({"  epochs: 1\n  batch_size: 10\n": "  epochs: 9\n  batch_size: 10\n"})
    # So little too large that it takes three epochs to leave the range of float32.
    done = copy.try_("dvc", "exp", "run", "--name", "wild", "-S", "lr=2.0", f"train@{MODELS[0]}")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: linear_regression: training diverged: the loss is")
    assert "in epoch 3" in line and "below lr = 2 may help" in line
    assert "Traceback" not in done.stderr
    (run,) = runs(copy)
    assert run["status"] == "FAILED" and run["DVC_EXP_NAME"] == "wild" and run["lr"] == "2.0"
    assert run["failure"] in line
    losses, watched = run["metrics"]["train_loss"], run["metrics"]["validation_loss"]
    assert list(watched) == [1, 2] and list(losses) == [1, 2, 3]
    assert 1 < losses[1] < losses[2] < losses[3]
    assert not (copy.folder / "results/linear_regression/model.safetensors").exists()
    tried(
        PART, "`dvc exp run` with a learning rate that is too large", "one line with model, epoch"
        " and step; a FAILED run with the history up to there; no output",
        "with a smaller one the run is FINISHED",
    )  # fmt: skip


def test_without_a_store_the_line_is_the_same(copy: Clone, tried: Callable[..., None]) -> None:
    done = copy.try_(
        "dvc", "exp", "run", "--temp", "-S", "lr=1000", f"train@{MODELS[0]}",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "error: linear_regression: training diverged: the loss is" in done.stderr
    assert "the failed run is not in MLflow: the tracking server at" in done.stderr
    tried(PART, "the same without a tracking server", "the same line, and that it is not recorded")


def test_the_queue_goes_on_with_the_others(copy: Clone, tried: Callable[..., None]) -> None:
    copy.run("dvc", "exp", "run", "--queue", "-S", "lr=0.02,1000,0.04")
    copy.run("dvc", "queue", "start", "--jobs", "1", OMP_NUM_THREADS="1")
    deadline = time.monotonic() + 900
    while "Queued" in (status := copy.run("dvc", "queue", "status")) or "Running" in status:
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status.count("Success") == 2 and status.count("Failed") == 1, status
    found = sorted((run["lr"], run["model"], run["status"]) for run in runs(copy))
    # DVC stops an experiment at the first stage that fails.
    assert [each for each in found if each[0] == "1000.0"] in (
        [("1000.0", model, "FAILED")] for model in MODELS
    )
    assert [each for each in found if each[0] != "1000.0"] == sorted(
        (lr, model, "FINISHED") for lr in ("0.02", "0.04") for model in MODELS
    ), json.dumps(found)
    tried(
        PART, "a queue with one such experiment among three", "it Failed, the others are recorded",
        "they are FINISHED runs",
    )  # fmt: skip
