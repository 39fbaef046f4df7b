"""The pipeline as a user runs it: real DVC, MLflow and images, in a clone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from mlflow import MlflowClient
from ruamel.yaml import YAML

from lab import params
from tests.conftest import Clone, clone_working_tree
from tracking.repository import ROOT

pytestmark = pytest.mark.slow
MODELS = ["linear_regression", "softmax_regression", "mlp"]
DATA_STAGES = {"generate_regression", "download_fashion_mnist"}
# Another model in the list: no other stage may run again.
NEW_MODEL = """models:
  new:
    title: New
    kind: linear
    data: fashion_mnist
    task: classification
"""
# They check parameters, and decide no output but those of the stages that name them.
CHECKING = {f"lab/{name}.py" for name in ("download", "optimizers", "params", "schema", "tasks")}


def of(*models: str, verbs: str = "train evaluate record") -> set[str]:
    """The models' stages."""
    return {f"{verb}@{model}" for verb in verbs.split() for model in models}


def stages_run(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    return {
        line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")
    }


def runs(clone: Clone) -> list[dict[str, str]]:
    """All runs of the clone's store, oldest first, with parameters and tags."""
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    models = {item.experiment_id: item.name for item in client.search_experiments()}
    return [
        {"model": models[run.info.experiment_id], "name": run.info.run_name}
        | {"status": run.info.status, **run.data.params, **run.data.tags}
        for run in client.search_runs(list(models), order_by=["start_time ASC"])
    ]


def fingerprints(records: list[dict[str, str]]) -> dict[str, str]:
    """Of each model's run."""
    return {run["model"]: run["fingerprint"] for run in records}


def test_the_committed_lock_matches_the_code(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone", tmp_path)
    clone_working_tree(clone)
    status = json.loads(clone.run("dvc", "status", "--json"))
    # Data and models are missing in a clone; nothing else may differ.
    assert not {
        (stage, path)
        for stage, reasons in status.items()
        for reason in reasons
        if isinstance(reason, dict)
        for path, state in reason.get("changed deps", {}).items()
        if state != "deleted"
    }
    assert not [stage for stage, reasons in status.items() if "changed command" in reasons]


def test_repro_makes_everything_and_records_a_run_per_model_and_then_does_nothing(
    clone: Clone, finished: Clone
) -> None:
    log = finished.folder.with_name("repro.log").read_text()
    assert stages_run(log) == DATA_STAGES | of(*MODELS)
    changed = set(clone.run("git", "diff", "--name-only", "HEAD~1", "HEAD").split())
    assert changed <= {"dvc.lock", *(f"results/{model}/metrics.json" for model in MODELS)}
    before = clone.run("git", "rev-parse", "HEAD~1").strip()
    name = f"baseline {before[:7]}"
    expected = [(model, name, "true", "FINISHED", "false", before) for model in MODELS]
    keys = ("model", "name", "baseline", "status", "git.dirty", "git.commit")
    assert sorted(tuple(run[key] for key in keys) for run in runs(clone)) == sorted(expected)

    assert clone.run("dvc", "status").strip() == "Data and pipelines are up to date."
    assert not stages_run(clone.run("dvc", "repro"))
    assert len(runs(clone)) == 3 and not clone.run("git", "status", "--porcelain")


@pytest.mark.sample(0)  # test_killed.py compares the bytes of a second run, too
def test_a_fresh_clone_makes_the_same_bytes_and_records_its_own_runs(
    finished: Clone, clone: Clone, tmp_path: Path
) -> None:
    fresh = Clone(tmp_path / "fresh", finished.mirror)
    subprocess.run(["git", "clone", "--quiet", finished.folder, fresh.folder], check=True)
    assert stages_run(fresh.run("dvc", "repro")) == DATA_STAGES | of(*MODELS)
    assert not fresh.run("git", "status", "--porcelain")
    assert len(runs(fresh)) == 3
    assert fingerprints(runs(fresh)) == fingerprints(runs(clone))


def noted(finished: Clone) -> dict[str, tuple[dict[str, Any], set[str], set[str]]]:
    """Of each stage: its entry in dvc.lock, the files that it loaded, the parameters it read."""
    stages = YAML(typ="safe").load(finished.folder / "dvc.lock")["stages"]
    found = {}
    for name, stage in stages.items():
        notes = json.loads((finished.folder.with_name("notes") / name).read_text())
        program = stage["cmd"].split()[2].replace(".", "/") + ".py"  # python -m stages.train mlp
        found[name] = stage, {program, *notes["files"]}, set(notes["read"])
    return found


def test_dvc_yaml_names_the_code_that_each_stage_loads(finished: Clone) -> None:
    stages, models = noted(finished), params.load(finished.folder / "params.yaml").models
    assert stages.keys() == DATA_STAGES | of(*MODELS)
    for name, (stage, loaded, _) in stages.items():
        named = {dep["path"] for dep in stage["deps"]}
        unnamed = {file for file in loaded if not {file, file.split("/")[0]} & named}
        unnamed = {file for file in unnamed if not file.startswith("lab/common/")}
        # The parameters of all models and data sets are checked, and those of one are used.
        if model := name.partition("@")[2]:
            assert f"lab/models/{models[model].kind}.py" in named
        data = models[model].data if model else stage["cmd"].split()[-1]
        assert f"lab/datasets/{data}.py" in named
        other = {f"lab/models/{entry.kind}.py" for entry in models.values()}
        other |= {f"lab/datasets/{entry.data}.py" for entry in models.values()}
        other |= {"lab/models/__init__.py", "lab/datasets/__init__.py"}
        assert unnamed - other <= CHECKING | {"lab/__init__.py"}, name
        assert {path for path in named if path.endswith(".py")} <= loaded, name


def test_dvc_yaml_names_the_parameters_that_each_stage_reads(finished: Clone) -> None:
    for name, (stage, _, read) in noted(finished).items():
        named = set(stage["params"]["params.yaml"])
        top = {"Params.seed", "Params.lr", "Params.arithmetic", "Params.download"}
        keys = {key.removeprefix("Params.") for key in read & top}
        keys |= {key.partition(".")[0] for key in read if key[0].islower()}
        if "ModelEntry.title" in read:
            keys.add(f"models.{name.partition('@')[2]}")
        assert keys <= named, name
        if name == "train@mlp":  # the control: reading is noticed
            assert keys == {"seed", "lr", "arithmetic", "fashion_mnist", "mlp"}


def test_a_parameter_changes_only_the_stages_that_use_it(clone: Clone) -> None:
    text = Path("params.yaml").read_text()
    trained = "train record"
    evaluated = of("linear_regression", verbs="evaluate")
    images = of("softmax_regression", "mlp", verbs=trained)
    regression = of("linear_regression", verbs=trained)
    generated = {"generate_regression"} | regression
    for old, new, expected in (
        ("lr: 0.03", "lr: 0.04", images | regression),
        ("arithmetic: exact", "arithmetic: native", of(*MODELS)),
        ("seed: 1", "seed: 2", of(*MODELS) | generated),
        ("noise: 0.01", "noise: 0.02", generated | evaluated),
        ("validation: 5000", "validation: 6000", of("softmax_regression", "mlp")),
        ("  - 16\n", "  - 17\n", of("mlp", verbs=trained)),
        ("activation: relu", "activation: tanh", of("mlp", verbs=trained)),
        ("batch_size: 10\n", "batch_size: 11\n", regression),
        ("optimizer: sgd\n", "optimizer: adam\n", regression),
        ("title: Linear", "title: A linear", of("linear_regression", verbs="record")),
        ("read_timeout: 20", "read_timeout: 21", {"download_fashion_mnist"}),
        ("models:\n", NEW_MODEL, set()),
    ):
        clone.edit({old: new})
        with Repo() as repo:
            status = repo.status()
        Path("params.yaml").write_text(text)
        # Other stages in the status only depend on these.
        changed = {
            stage
            for stage, reasons in status.items()
            if any("params.yaml" in reason.get("changed deps", {}) for reason in reasons)
            and not stage.endswith("@new")
        }
        assert changed == expected, new


def test_exp_run_trains_and_records_and_the_run_cache_trains_nothing_twice(
    clone: Clone, run_all: bool
) -> None:
    models = MODELS if run_all else MODELS[:1]
    targets = sorted(of(*models, verbs="record"))
    experiment = ("dvc", "exp", "run", "-S", "lr=0.1", *targets, "--name")
    assert stages_run(clone.run(*experiment, "faster")) == of(*models)
    faster = runs(clone)[3:]
    head = clone.run("git", "rev-parse", "HEAD").strip()
    assert sorted(run["model"] for run in faster) == sorted(models)
    assert not any("baseline" in run for run in faster)
    for key, value in {
        "name": "faster",
        "lr": "0.1",
        "git.dirty": "true",
        "DVC_EXP_BASELINE_REV": head,
    }.items():
        assert {run[key] for run in faster} == {value}
    assert "lr" in clone.run("dvc", "params", "diff")
    assert "test_loss" in clone.run("dvc", "metrics", "diff")
    assert "faster" in clone.run("dvc", "exp", "show", "--md")

    clone.run("git", "checkout", "--quiet", "HEAD", ".")
    back = clone.run("dvc", "repro", *sorted(of(*models, verbs="evaluate")))
    assert not stages_run(back) and not clone.run("git", "status", "--porcelain")
    assert stages_run(clone.run(*experiment, "again")) == set(targets)
    again = runs(clone)[3 + len(models) :]
    assert {run["name"] for run in again} == {"again"}
    assert fingerprints(again) == fingerprints(faster)
    assert all("reproduces" in run for run in again)
    assert set(clone.statuses()) == {"FINISHED"}


def test_a_python_without_the_packages_is_named_in_one_line() -> None:
    command = [sys.executable, "-S", "-m", "stages.train", "mlp"]  # without site-packages
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {sys.executable} lacks torch")
    assert "make setup" in done.stderr
