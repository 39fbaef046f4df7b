"""A recorded run is run again and its bytes are compared: real runs, and runs changed by hand."""

import contextlib
import pickle
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from stages import evaluate, record
from tests.conftest import Clone, Program
from tests.faults.test_untrusted_files import Canary
from tools import compare, replay

pytestmark = pytest.mark.slow
MODEL = "linear_regression"  # the fastest


def sql(clone: Clone, statement: str, *values: str) -> list[str]:
    """The first column of what the statement returns from MLflow's database."""
    with contextlib.closing(sqlite3.connect(clone.folder / "mlflow.db")) as db:
        rows = db.execute(statement, values).fetchall()
        db.commit()
        return [row[0] for row in rows]


def runs(clone: Clone, model: str = MODEL) -> list[str]:
    """The ids of the model's runs, oldest first."""
    tables = "runs JOIN experiments e USING (experiment_id)"
    query = f"SELECT run_uuid FROM {tables} WHERE e.name = ? ORDER BY start_time"  # noqa: S608
    return sql(clone, query, model)


def tag(clone: Clone, run: str, key: str) -> str:
    """The value of the run's tag."""
    return sql(clone, "SELECT value FROM tags WHERE run_uuid = ? AND key = ?", run, key)[0]


@pytest.fixture(autouse=True)
def in_clone(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.folder)


def change_code(clone: Clone, count: int) -> None:
    """Write gradient norms at other steps, which changes history.csv but not the model."""
    path = clone.folder / "lab/training.py"
    code = path.read_text(encoding="utf-8")
    assert "NORM_EVERY = 10" in code
    path.write_text(code.replace("NORM_EVERY = 10", f"NORM_EVERY = {count}"), encoding="utf-8")


def run_changed_code(clone: Clone, in_process: Program) -> None:
    """Run the stages with code that is not committed."""
    change_code(clone, 7)
    (clone.folder / "dvc.lock").unlink()
    clone.run("python", "-m", "stages.train", MODEL)
    for stage in (evaluate, record):
        assert in_process(stage, MODEL).returncode == 0
    clone.run("git", "checkout", "--quiet", ".")


def run_experiment(clone: Clone, in_process: Program) -> None:
    """Run an experiment in a temporary folder."""
    clone.run("dvc", "exp", "run", "--temp", "-S", "lr=0.05", f"record@{MODEL}")


@pytest.mark.sample(1)
@pytest.mark.parametrize("make_run", [run_changed_code, None, run_experiment])
def test_a_run_is_identical_and_says_so_afterwards(
    clone: Clone, in_process: Program, make_run: Callable[[Clone, Program], None] | None
) -> None:
    run = runs(clone)[0]
    if make_run:
        make_run(clone, in_process)
        old, run = run, runs(clone)[-1]
        history = f"sha256.results/{MODEL}/history.csv"
        assert tag(clone, old, history) != tag(clone, run, history)  # the changes are needed
    table = in_process(compare, "--csv").stdout
    done = in_process(replay, run[:8])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("identical: all ")
    lr = 0.05 if make_run is run_experiment else 0.03
    assert "DIFFERENT" not in done.stdout and re.search(f"parameter lr +{lr} ", done.stdout)
    assert tag(clone, run, "replayed").startswith("identical on ")
    assert clone.run("git", "status", "--porcelain") == ""
    assert in_process(compare, "--csv").stdout == table  # nothing is recorded


@pytest.mark.fault(
    "8. Untrusted files",
    "a run whose model in the store is a pickle is replayed",
    "different: exit code 1; no code runs",
    "pickle.load runs it",
)
def test_changes_of_parameters_model_and_code_are_found(
    clone: Clone, in_process: Program, tmp_path: Path
) -> None:
    run, canary = runs(clone)[0], tmp_path / "canary"
    change_code(clone, 6)
    clone.commit("another change")
    head = clone.run("git", "rev-parse", "HEAD").strip()
    sql(clone, "UPDATE tags SET value = ? WHERE key = 'git.commit'", head)
    sql(clone, "UPDATE params SET value = '0.5' WHERE key = 'lr'")
    query = "SELECT artifact_location FROM logged_models WHERE source_run_id = ?"
    model = Path(sql(clone, query, run)[0].removeprefix("file://"), "data/model.safetensors")
    model.write_bytes(pickle.dumps(Canary(canary)))
    done = in_process(replay, run)
    assert done.returncode == 1, done.stderr
    different = re.findall("^(.*?)  .* DIFFERENT$", done.stdout, re.MULTILINE)
    assert different == [
        "parameter lr", "model.safetensors in the store", f"results/{MODEL}/history.csv"
    ]  # fmt: skip
    assert done.stdout.splitlines()[-1] == "different: first in parameter lr"
    assert tag(clone, run, "replayed").startswith("different on ")
    assert not canary.exists()
    pd.read_pickle(model)  # noqa: S301 -- the control
    assert canary.exists()


def test_an_id_of_no_run_or_of_several_cannot_be_tried(in_process: Program) -> None:
    for run, reason in ("f" * 32, "no run has this id"), ("", "several runs begin so"):
        done = in_process(replay, run)
        assert done.returncode == 2, done.stdout + done.stderr
        assert reason in done.stderr.splitlines()[-1]


def test_a_run_without_data_and_sources_cannot_be_tried(
    clone: Clone, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("data/fashion_mnist")
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(clone.folder))  # where no archives are
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = in_process(replay, runs(clone, "softmax_regression")[0])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no source delivers Fashion-MNIST" in done.stderr.splitlines()[-1]
