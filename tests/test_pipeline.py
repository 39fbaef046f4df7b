"""The pipeline as a user runs it: real DVC, real MLflow, real images, in a clone.

The tests build on each other, in this order.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lab.params import MODELS
from tests.conftest import Clone

pytestmark = pytest.mark.slow
PER_MODEL = {f"{verb}@{model}" for verb in ("train", "evaluate", "record") for model in MODELS}
STAGES = {"generate_regression", "download_fashion_mnist"} | PER_MODEL


def runs(clone: Clone) -> list[dict[str, str]]:
    """All runs of the clone's own store, oldest first, with their parameters and tags."""
    with sqlite3.connect(f"file:{clone.folder}/mlflow.db?mode=ro", uri=True) as db:
        found = []
        for run_id, name, status, experiment in db.execute(
            "SELECT run_uuid, r.name, status, e.name FROM runs r JOIN experiments e"
            " USING (experiment_id) ORDER BY start_time"
        ):
            run = {"run": name, "status": status, "model": experiment}
            for table in ("params", "tags"):
                run |= dict(
                    db.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", [run_id])  # noqa: S608
                )
            found.append(run)
    db.close()
    return found


def ran(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    return {
        line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")
    }


def test_the_committed_lock_is_in_step_with_the_code(tmp_path: Path, mirror: Path) -> None:
    status = json.loads(Clone(tmp_path, mirror).run("dvc", "status", "--json"))
    # Without data and models, which a clone lacks, nothing is to say.
    assert not {
        (stage, path)
        for stage, reasons in status.items()
        for reason in reasons
        if isinstance(reason, dict)
        for path, state in reason.get("changed deps", {}).items()
        if state != "deleted"
    }
    assert not [stage for stage, reasons in status.items() if "changed command" in reasons]


def test_repro_makes_everything_and_records_a_run_for_each_model(clone: Clone) -> None:
    assert ran(clone.run("dvc", "repro")) == STAGES
    assert clone.run("dvc", "status").strip() == "Data and pipelines are up to date."
    changed = clone.run("git", "status", "--porcelain").split("\n")
    assert {line[3:] for line in changed if line} <= {
        "dvc.lock", *(f"results/{model}/metrics.json" for model in MODELS)
    }  # fmt: skip
    clone.commit("results")
    assert sorted(run["model"] for run in runs(clone)) == sorted(MODELS)
    assert {run["status"] for run in runs(clone)} == {"FINISHED"}
    assert {run["git.dirty"] for run in runs(clone)} == {"false"}


def test_a_second_repro_does_nothing(clone: Clone) -> None:
    assert ran(clone.run("dvc", "repro")) == set()
    assert len(runs(clone)) == 3


def test_a_fresh_clone_comes_to_the_same_bytes_and_records_its_own_runs(
    clone: Clone, tmp_path: Path, mirror: Path
) -> None:
    fresh = Clone.__new__(Clone)
    fresh.folder, fresh.environment = tmp_path, clone.environment
    fresh.run("git", "clone", "--quiet", str(clone.folder), ".")
    assert ran(fresh.run("dvc", "repro")) == STAGES
    assert fresh.run("git", "status", "--porcelain") == ""
    assert len(runs(fresh)) == 3
    assert {run["fingerprint"] for run in runs(fresh)} == {
        run["fingerprint"] for run in runs(clone)
    }


def both(*models: str) -> set[str]:
    return {f"{verb}@{model}" for verb in ("train", "record") for model in models}


ARITHMETIC = both(*MODELS) | {f"evaluate@{model}" for model in MODELS}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("lr: 0.03", "lr: 0.04", both(*MODELS)),
        ("arithmetic: exact", "arithmetic: native", ARITHMETIC),
        ("seed: 1", "seed: 2", {"generate_regression"} | both(*MODELS)),
        ("noise: 0.01", "noise: 0.02", {"generate_regression"} | both("linear_regression")),
        ("validation: 5000", "validation: 6000", both("softmax_regression", "mlp")),
        ("  - 16\n", "  - 17\n", both("mlp")),
        ("activation: relu", "activation: tanh", both("mlp")),
        ("batch_size: 10\n", "batch_size: 11\n", both("linear_regression")),
    ],
)
def test_a_parameter_changes_the_stages_that_use_it_and_no_other(
    clone: Clone, old: str, new: str, expected: set[str]
) -> None:
    clone.edit({old: new})
    status = json.loads(clone.run("dvc", "status", "--json"))
    clone.run("git", "checkout", "--quiet", "params.yaml")
    # The other stages of the status only follow from these.
    changed = {
        stage
        for stage, reasons in status.items()
        if any("params.yaml" in reason.get("changed deps", {}) for reason in reasons)
    }
    assert changed == expected


def test_exp_run_trains_with_the_new_value_and_dvc_says_what_changed(clone: Clone) -> None:
    output = clone.run("dvc", "exp", "run", "--name", "faster", "-S", "lr=0.1")
    assert ran(output) == PER_MODEL
    assert [run["run"] for run in runs(clone)[3:]] == ["faster"] * 3
    assert {run["lr"] for run in runs(clone)[3:]} == {"0.1"}
    assert {run["git.dirty"] for run in runs(clone)[3:]} == {"true"}
    head = clone.run("git", "rev-parse", "HEAD").strip()
    assert {run["DVC_EXP_BASELINE_REV"] for run in runs(clone)[3:]} == {head}
    assert "lr" in clone.run("dvc", "params", "diff")
    assert "test_accuracy" in clone.run("dvc", "metrics", "diff")
    assert "faster" in clone.run("dvc", "exp", "show", "--md")


def test_an_experiment_that_the_run_cache_knows_trains_nothing_and_is_recorded(
    clone: Clone,
) -> None:
    clone.run("git", "checkout", "--quiet", "HEAD", ".")
    clone.run("dvc", "repro")  # back at the baseline
    before = len(runs(clone))
    output = clone.run("dvc", "exp", "run", "--name", "again", "-S", "lr=0.1")
    assert not [stage for stage in ran(output) if stage.startswith("train@")]
    again = runs(clone)[before:]
    assert [run["run"] for run in again] == ["again"] * 3
    first = {run["model"]: run["fingerprint"] for run in runs(clone) if run["run"] == "faster"}
    assert {run["model"]: run["fingerprint"] for run in again} == first
    assert all("reproduces" in run for run in again)
    clone.run("git", "checkout", "--quiet", "HEAD", ".")


def test_queued_experiments_run_side_by_side_and_none_is_lost(clone: Clone) -> None:
    before = len(runs(clone))
    clone.run("dvc", "exp", "run", "--queue", "-S", "lr=1e-2,0.02", "-S", "mlp.activation=tanh")
    clone.run("dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 600
    while "Queued" in (status := clone.run("dvc", "queue", "status")) or "Running" in status:
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status.count("Success") == 2, status
    new = runs(clone)[before:]
    assert sorted((run["model"], run["lr"]) for run in new) == sorted(
        (model, lr) for model in MODELS for lr in ("0.01", "0.02")
    )
    assert {run["status"] for run in new} == {"FINISHED"}
    assert not clone.run("git", "status", "--porcelain")


def test_bad_parameters_stop_the_pipeline_with_one_line(clone: Clone) -> None:
    clone.edit({"seed: 1": "seed: one"})
    done = clone.try_("dvc", "repro")
    clone.run("git", "checkout", "--quiet", "params.yaml")
    assert done.returncode != 0
    assert "error: params.yaml: seed = 'one': expected a valid integer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_diverging_training_stops_the_pipeline_with_one_line(clone: Clone) -> None:
    done = clone.try_("dvc", "exp", "run", "--temp", "-S", "lr=1000", "train@linear_regression")
    assert done.returncode != 0
    assert "error: linear_regression: training diverged: the loss is" in done.stderr
    assert "a learning rate below lr = 1000 may help" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_stage_leaves_no_half_output_and_the_next_repro_mends(clone: Clone) -> None:
    clone.run("dvc", "repro")
    before = (clone.folder / "dvc.lock").read_bytes()
    outputs = [clone.folder / "results/mlp" / name for name in ("model.safetensors", "history.csv")]
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", "train@mlp"],
        cwd=clone.folder, env=clone.environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while outputs[0].exists() and process.poll() is None:
        time.sleep(0.02)  # until DVC has removed the old outputs
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not [path for path in outputs if path.exists()]
    rwlock = clone.folder / ".dvc/tmp/rwlock"
    if rwlock.exists() and not rwlock.read_bytes():
        rwlock.unlink()  # DVC can be killed while it writes this
    clone.run("dvc", "repro")
    assert (clone.folder / "dvc.lock").read_bytes() == before
    assert not clone.run("git", "status", "--porcelain")


def test_a_python_without_the_packages_is_named_in_one_line(clone: Clone, tmp_path: Path) -> None:
    subprocess.run(["python3", "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    done = clone.try_(str(tmp_path / "bare/bin/python"), "-m", "stages.train", "mlp")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "lacks torch" in done.stderr and "make setup" in done.stderr


LOADED = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    root = pathlib.Path.cwd()
    files = {pathlib.Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
    files.add(root / (sys.argv[0] if sys.argv[0].endswith(".py") else sys.argv[0].replace(".", "/") + ".py"))
    for file in sorted(files):
        if file.is_relative_to(root) and ".venv" not in file.parts:
            print("loaded", file.relative_to(root).as_posix())
"""  # noqa: E501


@pytest.mark.parametrize(
    ("stage", "model"),
    [("generate_regression", None), ("download_fashion_mnist", None), ("train", "mlp"),
     ("train", "linear_regression"), ("evaluate", "mlp"), ("evaluate", "linear_regression"),
     ("record", "mlp")],
)  # fmt: skip
def test_dvc_yaml_names_the_code_that_a_stage_loads(
    clone: Clone, stage: str, model: str | None, tmp_path: Path
) -> None:
    definition = YAML(typ="safe").load(clone.folder / "dvc.yaml")["stages"][stage]
    named = {dep for dep in definition.get("do", definition)["deps"] if not dep.startswith("${")}
    command = ["python", "-c", LOADED, f"stages.{stage}", *([model] if model else [])]
    output = clone.run(*command, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")
    loaded = {line.split()[1] for line in output.splitlines() if line.startswith("loaded ")}
    assert f"stages/{stage}.py" in loaded
    missing = {f for f in loaded if f not in named and f.split("/")[0] not in named}
    assert missing - {"lab/__init__.py"} == set()
    if stage != "record":  # which stores all of exact and lab with the model
        code = {dep for dep in named if dep.endswith(".py")}
        assert code == {f for f in loaded if not f.startswith("exact/")} - {"lab/__init__.py"}
    clone.run("git", "checkout", "--quiet", "HEAD", ".")


def test_the_store_survives_all_this(clone: Clone) -> None:
    with sqlite3.connect(clone.folder / "mlflow.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    shutil.rmtree(clone.folder / "mlartifacts")  # the largest part of what the tests leave behind
