"""A recorded run is run again and its bytes compared: real runs, and runs changed by hand."""

import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Clone

pytestmark = pytest.mark.slow
MODEL = "linear_regression"  # the fastest
RECORD = f"record@{MODEL}"


@pytest.fixture(scope="module")
def recorded(clone: Clone) -> Clone:
    """The clone with its results committed, and a run of each model recorded."""
    clone.run("dvc", "repro")
    clone.commit("results")
    clone.run("rm", *(path.as_posix() for path in clone.folder.glob("results/*/receipt.json")))
    clone.run("dvc", "repro")  # recorded again, now as the commit says
    return clone


def newest(clone: Clone, model: str = MODEL) -> str:
    with sqlite3.connect(clone.folder / "mlflow.db") as db:
        ((run,),) = db.execute(
            "SELECT run_uuid FROM runs JOIN experiments e USING (experiment_id)"
            " WHERE e.name = ? ORDER BY start_time DESC LIMIT 1", [model]
        )  # fmt: skip
    db.close()
    return str(run)


def change(clone: Clone, statement: str, *values: str) -> None:
    """Change the store behind MLflow's back."""
    with sqlite3.connect(clone.folder / "mlflow.db") as db:
        assert db.execute(statement, values).rowcount == 1
    db.close()


def replay(clone: Clone, run: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = clone.try_("python", "-m", "tools.replay", run, **environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def workspace(recorded: Clone) -> Iterator[Clone]:
    """The clone, which the test may change."""
    yield recorded
    recorded.run("git", "checkout", "--quiet", ".")


def test_a_run_of_the_commit_is_identical_and_says_so_afterwards(recorded: Clone) -> None:
    run = newest(recorded)
    runs = recorded.run("python", "-m", "tools.compare", "--csv")
    done = replay(recorded, run[:8])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("identical: all ")
    assert recorded.run("git", "status", "--porcelain") == ""
    assert recorded.run("python", "-m", "tools.compare", "--csv") == runs  # nothing is recorded
    with sqlite3.connect(recorded.folder / "mlflow.db") as db:
        ((tag,),) = db.execute(
            "SELECT value FROM tags WHERE run_uuid = ? AND key = 'replayed'", [run]
        )
    db.close()
    assert tag.startswith("identical on ")


def test_a_run_of_an_experiment_in_a_folder_of_its_own_is_identical(workspace: Clone) -> None:
    workspace.run("dvc", "exp", "run", "--temp", "-S", "lr=0.05", RECORD)
    done = replay(workspace, newest(workspace))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parameter lr " in done.stdout and " 0.05 " in done.stdout


def test_a_run_of_changed_code_is_identical_when_the_change_is_gone(workspace: Clone) -> None:
    path = workspace.folder / "lab/training.py"
    code = path.read_text(encoding="utf-8")
    path.write_text(code.replace("NORM_EVERY = 10", "NORM_EVERY = 7"), encoding="utf-8")
    before = newest(workspace)
    workspace.run("dvc", "repro", RECORD)
    run = newest(workspace)
    assert run != before
    workspace.run("git", "checkout", "--quiet", ".")
    done = replay(workspace, run)
    assert done.returncode == 0, done.stdout + done.stderr

    # The control: the same run, said to be of a commit with yet another change.
    path.write_text(code.replace("NORM_EVERY = 10", "NORM_EVERY = 6"), encoding="utf-8")
    workspace.commit("another change")
    head = workspace.run("git", "rev-parse", "HEAD").strip()
    statement = "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = 'git.commit'"
    change(workspace, statement, head, before)
    done = replay(workspace, before)
    workspace.run("git", "reset", "--quiet", "--hard", "HEAD~1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"different: first in results/{MODEL}/history.csv"


def test_a_changed_parameter_is_found(workspace: Clone) -> None:
    workspace.run("rm", f"results/{MODEL}/receipt.json")
    workspace.run("dvc", "repro", RECORD)
    run = newest(workspace)
    statement = "UPDATE params SET value = '0.5' WHERE run_uuid = ? AND key = 'lr'"
    change(workspace, statement, run)
    done = replay(workspace, run)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "different: first in parameter lr"


def test_one_changed_byte_of_the_recorded_model_is_found(workspace: Clone) -> None:
    workspace.run("rm", f"results/{MODEL}/receipt.json")
    workspace.run("dvc", "repro", RECORD)
    models = (workspace.folder / "mlartifacts" / MODEL / "models").glob("*/artifacts/data/*")
    model = max(models, key=lambda path: path.stat().st_mtime_ns)
    contents = bytearray(model.read_bytes())
    contents[-1] ^= 1
    model.write_bytes(contents)
    done = replay(workspace, newest(workspace))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "different: first in model.safetensors in the store"


@pytest.mark.parametrize(
    ("run", "reason"),
    [("f" * 32, "no run has this id"), ("", "several runs begin so"),
     ("unknown commit", "is not in this repository"), ("not ours", "not a run that this pipeline")],
)  # fmt: skip
def test_what_cannot_be_tried_is_said_in_one_line(recorded: Clone, run: str, reason: str) -> None:
    model, key = {"unknown commit": ("mlp", "git.commit"), "not ours": ("mlp", "fingerprint")}.get(
        run, ("", "")
    )
    if model:
        run = newest(recorded, model)
        statement = (
            "UPDATE tags SET value = replace(value, substr(value, 1, 8), '00000000')"
            " WHERE run_uuid = ? AND key = ?"
        )
        if key == "fingerprint":
            statement = "DELETE FROM tags WHERE run_uuid = ? AND (key LIKE 'sha256.%' AND key != ?)"
        with sqlite3.connect(recorded.folder / "mlflow.db") as db:
            assert db.execute(statement, [run, key]).rowcount
        db.close()
    done = replay(recorded, run)
    assert done.returncode == 2, done.stdout + done.stderr
    assert reason in done.stderr.splitlines()[-1]


def test_without_data_and_sources_it_cannot_be_tried(workspace: Clone, tmp_path: Path) -> None:
    (workspace.folder / "data/fashion_mnist").rename(tmp_path / "aside")
    dead = "http://127.0.0.1:9"
    done = replay(
        workspace, newest(workspace, "softmax_regression"), FASHION_MNIST_MIRROR=str(tmp_path),
        http_proxy=dead, https_proxy=dead,
    )  # fmt: skip
    (tmp_path / "aside").rename(workspace.folder / "data/fashion_mnist")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no source delivers Fashion-MNIST" in done.stderr.splitlines()[-1]
