"""A diverged training: one line that says where, a FAILED run, and the queue goes on."""

import time
from functools import partial

import pytest
from mlflow import MlflowClient

from stages import train
from tests.conftest import Clone, Program
from tests.inputs import refusing

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault, "10. Diverged training")
MODEL = "linear_regression"
ERROR = f"error: {MODEL}: training diverged: the loss is"


@fault(
    "`dvc exp run` with a learning rate that is too large",
    "one line with model, epoch and step; a FAILED run with the history up to there; no output",
    "with a smaller one the run is FINISHED",
)
@fault(
    "a queue of one such experiment and a good one, two at a time",
    "this one Failed, the other is recorded",
    "that is a FINISHED run",
)
def test_a_diverged_experiment_is_a_failed_run_and_the_queue_goes_on(clone: Clone) -> None:
    clone.forget_runs()
    clone.edit({"  epochs: 1\n  batch_size: 10\n": "  epochs: 9\n  batch_size: 10\n"})
    clone.commit("nine epochs")
    queue = ["--queue", "-S", "lr=1000,0.04", f"record@{MODEL}"]
    clone.run("dvc", "exp", "run", *queue)
    # Too large by so little that the loss leaves the range of float32 in the third epoch.
    done = clone.try_("dvc", "exp", "run", "--name", "wild", "-S", "lr=2.0", f"train@{MODEL}")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(ERROR) and "in epoch 3" in line and "below lr = 2 may help" in line
    assert not (clone.folder / f"results/{MODEL}/model.safetensors").exists()

    clone.run("dvc", "queue", "start", "--jobs", "2", OMP_NUM_THREADS="1")
    deadline = time.monotonic() + 900
    while {"Queued", "Running"} & set((status := clone.run("dvc", "queue", "status")).split()):
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status.count("Success") == 1 and status.count("Failed") == 1, status
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    experiment = client.get_experiment_by_name(MODEL)
    runs = {run.data.params["lr"]: run for run in client.search_runs([experiment.experiment_id])}
    status_of = {lr: run.info.status for lr, run in runs.items()}
    assert status_of == {"0.04": "FINISHED", "1000.0": "FAILED", "2.0": "FAILED"}
    wild = runs["2.0"]
    assert wild.data.tags["DVC_EXP_NAME"] == "wild" and wild.data.tags["failure"] in line
    training, validation = (
        sorted((m.step, m.value) for m in client.get_metric_history(wild.info.run_id, key))
        for key in ("train_loss", "validation_loss")
    )
    assert [step for step, _ in training] == [1, 2, 3] and [step for step, _ in validation] == [
        1,
        2,
    ]
    assert 1 < training[0][1] < training[1][1] < training[2][1]


@fault("the same without a tracking server", "the same line, and that it is not recorded")
def test_without_a_tracking_server_the_line_is_the_same(
    clone: Clone, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.edit({"lr: 0.03": "lr: 1000"})
    monkeypatch.chdir(clone.folder)
    with refusing() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        done = in_process(train, MODEL)
    warning, error = done.stderr.splitlines()
    assert warning.startswith(f"the failed run is not in MLflow: the tracking server at {address}")
    assert error.startswith(ERROR) and done.returncode == 1
