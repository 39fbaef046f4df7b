"""A recorded run is run again and its bytes are compared: real runs, and runs changed by hand."""

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from stages import evaluate, record
from tests import servers
from tests.conftest import Clone, Program
from tools import compare, replay

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clone")]
MODEL = "linear_regression"  # the fastest


def runs(model: str = MODEL) -> list[Run]:
    """The model's runs in the store of the current folder, oldest first."""
    return servers.runs(f"sqlite:///{Path.cwd()}/mlflow.db", model)


def change_code(steps: int) -> None:
    """Write gradient norms at other steps, which changes gradients.csv but not the model."""
    path, old = Path("lab/training.py"), "NORM_EVERY = 10"
    code = path.read_text(encoding="utf-8")
    assert old in code
    path.write_text(code.replace(old, f"NORM_EVERY = {steps}"), encoding="utf-8")


def run_changed_code(clone: Clone, in_process: Program) -> None:
    """Run the stages with code that is not committed."""
    change_code(7)
    Path("dvc.lock").unlink()
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
    if make_run:
        make_run(clone, in_process)
        gradients = [run.data.tags[f"sha256.results/{MODEL}/gradients.csv"] for run in runs()]
        assert len(set(gradients)) == 2  # the changes are needed
    run = runs()[-1].info.run_id
    table = in_process(compare, "--csv").stdout
    done = in_process(replay, run[:8])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("identical: all ")
    lr = 0.05 if make_run is run_experiment else 0.03
    assert "DIFFERENT" not in done.stdout and re.search(f"parameter lr +{lr} ", done.stdout)
    assert runs()[-1].data.tags["replayed"].startswith("identical on ")
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
    (run,), canary = runs(), tmp_path / "canary"
    change_code(6)
    clone.commit("another change")
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    head = clone.run("git", "rev-parse", "HEAD").strip()
    client.set_tag(run.info.run_id, "git.commit", head)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
        db.execute("UPDATE params SET value = '0.5' WHERE key = 'lr'")
        db.commit()
    place = client.get_logged_model(run.outputs.model_outputs[0].model_id).artifact_location
    model = Path(place.removeprefix("file://"), "data/model.safetensors")
    model.write_bytes(f"cos\nmkdir\n(V{canary}\ntR.".encode())  # a pickle of os.mkdir(canary)
    done = in_process(replay, run.info.run_id)
    assert done.returncode == 1, done.stderr
    assert re.findall("^(.*?)  .* DIFFERENT$", done.stdout, re.MULTILINE) == [
        "parameter lr",
        "model.safetensors in the store",
        f"results/{MODEL}/gradients.csv",
    ]
    assert done.stdout.splitlines()[-1] == "different: first in parameter lr"
    assert runs()[0].data.tags["replayed"].startswith("different on ")
    assert not canary.exists()
    pd.read_pickle(model)  # noqa: S301 -- the control
    assert canary.exists()


def test_git_variables_do_not_lead_back_to_this_repository(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (branch, head) = (clone.run("git", "rev-parse", *of, "HEAD") for of in (["--abbrev-ref"], []))
    monkeypatch.setenv("GIT_DIR", str(clone.folder / ".git"))
    replay.check_out(head.strip(), tmp_path / "none", tmp_path / "other")
    assert clone.run("git", "rev-parse", "--abbrev-ref", "HEAD") == branch != "HEAD\n"
    assert (tmp_path / "other/dvc.yaml").exists()


def test_a_run_that_cannot_be_replayed_says_why(
    in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("data/fashion_mnist")
    monkeypatch.setenv("FASHION_MNIST_MIRROR", "nowhere")
    for run, reason in {
        "f" * 32: "no run has this id",
        "": "several runs begin so",
        runs("softmax_regression")[0].info.run_id: "FASHION_MNIST_MIRROR: expected a folder",
    }.items():
        done = in_process(replay, run)
        assert done.returncode == 2, done.stdout + done.stderr
        assert reason in done.stderr.splitlines()[-1]
