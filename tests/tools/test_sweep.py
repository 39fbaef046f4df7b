"""Experiments on a cluster: real processes of Dask, DVC and MLflow, one of which is killed."""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE

import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient

from lab.common.files import InputError
from stages import record
from tests import servers
from tests.conftest import Clone, Program
from tools import cluster, sweep
from tools.worker import Job
from tracking.repository import ROOT

MODEL = "linear_regression"  # the fastest
TARGET = f"record@{MODEL}"
SWEEP = (sys.executable, "-m", "tools.sweep")


def worker_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """A worker of the sweep that has begun an experiment."""
    while True:
        assert process.poll() is None
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # of one that has just ended
                if "tools.dvc" in child.cmdline():
                    return child.parents()[0]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_survives_a_worker_and_a_training_that_diverges(
    clone: Clone, finished: Clone, tmp_path: Path, run_all: bool
) -> None:
    store = f"sqlite:///{clone.folder}/mlflow.db"
    edited = {"batch_size: 10\n": "batch_size: 20\n"}
    clone.edit(edited)  # not committed
    good = ["0.01", "0.1"] if run_all else ["0.1"]
    rates = ",".join([*good, "1000"])
    command = [*SWEEP, "--workers", "2", "-S", f"lr={rates}", TARGET]
    with subprocess.Popen(
        command, cwd=clone.folder, env=clone.whole(), stdout=PIPE, stderr=PIPE
    ) as process:
        worker_of(process).kill()
        printed, errors = (text.decode() for text in process.communicate())
    assert process.returncode == 1 and "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: lr-1000-") and "training diverged" in line
    assert all(f"lr={rate}" in printed for rate in good) and "lr=1000" not in printed

    _, *made = servers.runs(store, MODEL)
    done = {r.data.params["lr"]: r for r in made if r.info.status == "FINISHED"}
    assert sorted(done) == good and clone.statuses().count("FINISHED") == 3 + len(good)
    assert {run.data.params["batch_size"] for run in made} == {"20"}
    assert "RUNNING" not in clone.statuses()
    shown = clone.run("dvc", "exp", "show", "--md")
    assert all(run.info.run_name in shown for run in done.values())
    assert clone.run("git", "status", "--porcelain").split() == ["M", "params.yaml"]
    again = clone.try_("python", *command[1:])
    known = f"{len(good)} of {len(good) + 1} experiments are known"
    assert known in again.stderr and again.stdout == printed

    if run_all:  # elsewhere, so that nothing comes from the cache
        other = finished.copy(tmp_path / "other")
        other.edit(edited)
        other.run("dvc", "exp", "run", "--name", "alone", "-S", "lr=0.1", TARGET)
        alone = servers.runs(f"sqlite:///{other.folder}/mlflow.db", MODEL)[-1]
        assert alone.data.tags["fingerprint"] == done["0.1"].data.tags["fingerprint"]


@pytest.mark.slow
def test_different_bytes_of_one_experiment_are_an_alarm_and_equal_ones_are_one_run(
    clone: Clone, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{clone.folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # which MLflow sets here for the whole process
    monkeypatch.setenv("DVC_EXP_NAME", "twice")
    for _ in range(2):
        assert in_process(record, MODEL).returncode == 0
    job = Job("twice", "", b"", (), (), shared=False)
    assert len(servers.runs(store, MODEL)) == 3
    cluster.deduplicate([job])
    assert len(servers.runs(store, MODEL)) == 2

    assert in_process(record, MODEL).returncode == 0
    run = servers.runs(store, MODEL)[-1].info.run_id
    MlflowClient(store).set_tag(run, "fingerprint", "0" * 64)
    MlflowClient(store).set_tag(run, "platform", "another")
    with pytest.raises(InputError, match="twice: linear_regression has different bytes on"):
        cluster.deduplicate([job])
    assert len(servers.runs(store, MODEL)) == 3  # both are kept


@pytest.mark.slow
def test_a_search_on_one_worker_and_on_two_finds_the_same(
    finished: Clone, tmp_path: Path, run_all: bool
) -> None:
    if not run_all:
        pytest.skip("runs with --all")
    tables = []
    for workers in ("1", "2"):
        clone = finished.copy(tmp_path / workers)
        clone.forget_runs()
        search = ("--search", "lr=log(1e-3,1)", "--trials", "4", "--model", MODEL, "--prune")
        fixed = ("-S", f"{MODEL}.epochs=3")  # of which a trial begins with one
        printed = clone.run(*SWEEP, "--workers", workers, *search, *fixed)
        assert "best: trial " in printed
        (table,) = clone.folder.glob("searches/*/history.csv")
        tables.append(table.read_text())
        assert clone.run("git", "status", "--porcelain") == ""
    assert tables[0] == tables[1]
    epochs = pd.read_csv(io.StringIO(tables[0]))["epochs"]
    assert set(epochs) == {1, 3} and (epochs == 3).sum() < 3


@pytest.fixture
def project(git: Clone) -> Clone:
    """A repository with parameters and stages, but no data."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, name)
    shutil.copytree(ROOT / ".dvc", ".dvc", ignore=lambda *_: {"cache", "tmp"})
    git.commit("all")
    return git


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "nothing to vary"),
        ("-S lr", "expected NAME=VALUES"),
        ("-S lr=0.1,", "expected NAME=VALUES"),
        ("-S seed=range(1,3", "expected NAME=VALUES"),
        ("-S other=1", "other=1: no parameter of params.yaml"),
        ("-S lr=0.1,x", "lr=x: lr = 'x': expected a valid number"),
        ("-S dvc.yaml:stages=1", "dvc.yaml: expected parameters of params.yaml"),
        ("-S lr=0.1 nothing", "nothing: expected a stage of dvc.yaml"),
        ("-S lr=0.1 --workers 0", "--workers 0: expected 1 or more"),
        ("-S lr=0.1 --scheduler 10.0.0.1", "expected the address of a scheduler"),
        ("-S lr=0.1 --scheduler tcp://10.0.0.1:8786", "use tls:// with certificates"),
        ("-S lr=0.1 --scheduler tcp://127.0.0.1:1", "push it first"),
        ("--search lr=log(0,1) --model mlp", "expected NAME=log"),
        ("--search other=log(1,2) --model mlp", "no parameter of params.yaml"),
        ("--search lr=log(1,2)", "--search needs --model MODEL"),
        ("--search lr=log(1,2) --model mlp record@mlp", "expected no other stages"),
        ("-S lr=0.1 --model mlp", "are for a search"),
        ("-S lr=0.1 -S lr=0.3", "lr: expected once"),
        ("-S lr=0.1 --search lr=log(1,2) --model mlp", "lr: expected once"),
        ("--search lr=log(1,2) --model mlp -S mlp.epochs=1,2", "expects one number of epochs"),
        ("-S lr=0.1 --scheduler tcp://[::1:8786", "expected the address of a scheduler"),
        ("--search lr=log(1,2) --model other", "--model other: expected of"),
        ("--search lr=log(1,2) --model mlp --trials 0", "--trials 0: expected 1 or more"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    project: Clone,
    in_process: Program,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    expected: str,
) -> None:
    temporary = project.folder / "temporary"  # where the workers' clones would be
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    done = in_process(sweep, *arguments.split())
    assert done.returncode and expected in done.stderr.splitlines()[-1]
    assert not Path("mlflow.db").exists() and not list(temporary.iterdir())


def test_an_experiment_is_named_by_its_changes_in_their_order(project: Clone) -> None:
    changes = ["mlp.optimizer={name: sgd, momentum: 0.5}", "mlp.optimizer.momentum=0.9"]
    assert cluster.changed(changes) != cluster.changed(changes[::-1])
    with contextlib.ExitStack() as stack:
        jobs = cluster.Sweep(None, 1, stack).jobs([changes, changes, changes[::-1]], [])
    assert jobs[0].name == jobs[1].name != jobs[2].name


@pytest.mark.parametrize("address", ["tls://10.0.0.1:8786", "tcp://127.0.0.1:1", "tcp://[::1]:1"])
def test_addresses_of_this_machine_and_those_with_tls_are_allowed(address: str) -> None:
    cluster.require_private(address, insecure=False)
