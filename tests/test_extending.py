"""docs/extending.md followed to the letter: a model and a data set are added, and all runs."""

import random
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import Clone
from tests.servers import runs
from tests.test_pipeline import of, stages_run
from tracking.repository import ROOT

pytestmark = pytest.mark.slow
STEP = re.compile(
    r'<!-- (file|append|insert): (\S+?)(?:, below "([^"]+)")? -->\n```\w+\n(.*?)```', re.DOTALL
)
FIGURES = {"curves.png", "confusion.png", "mistakes.png", "weights.png"}


def follow(section: str) -> set[str]:
    """Apply the code blocks of a section of the page in the current folder."""
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
    changed = set()
    for action, name, line, block in STEP.findall(text):
        path = Path(name)
        changed.add(name)
        if action == "file":
            path.write_text(block)
        elif action == "append":
            path.write_text(path.read_text() + block)
        else:
            before, after = path.read_text().split(f"\n{line}\n")
            path.write_text(f"{before}\n{line}\n{block}{after}")
    return changed


@pytest.fixture
def extended(clone: Clone, run_all: bool) -> Clone:
    """A clone of the finished pipeline with the model and the data set of the page."""
    assert follow("A model") == {"lab/models/cnn.py", "params.yaml"}
    assert follow("A data set") == {"lab/datasets/wine.py", "dvc.yaml", "params.yaml"}
    clone.run("ruff", "check", "lab")
    if run_all:  # what mypy knows of the libraries takes half a minute
        cache = str(ROOT / ".mypy_cache")
        clone.run("mypy", "--cache-dir", cache, "lab/models/cnn.py", "lab/datasets/wine.py")
    clone.edit({"  epochs: 8\n  batch_size: 64": "  epochs: 1\n  batch_size: 500"})
    clone.edit({"channels: [16, 32]": "channels: [2]"})
    draw = random.Random(1)
    rows = [[draw.random() for _ in range(3)] for _ in range(100)]
    lines = [f"{a},{b},{c},{a + 2 * b - c}" for a, b, c in rows]
    Path("wine.csv").write_text("\n".join(["acid,sugar,salt,quality", *lines]) + "\n")
    clone.commit("a convolutional network, a data set")
    return clone


def test_a_model_and_a_data_set_are_trained_recorded_compared_and_replayed(
    extended: Clone, run_all: bool
) -> None:
    new = ("cnn", "wine_regression")
    assert stages_run(extended.run("dvc", "repro")) == {"prepare_wine", *of(*new)}
    store = f"sqlite:///{extended.folder}/mlflow.db"
    (run,), (regression,) = (runs(store, model) for model in new)
    client = MlflowClient(store)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files >= FIGURES
    assert run.data.params["kind"] == "cnn" and run.data.params["channels"] == "2"
    assert 0.3 < run.data.metrics["test_accuracy"] < 1
    assert regression.data.metrics["test_r2"] < 1
    assert "fit.png" in {file.path for file in client.list_artifacts(regression.info.run_id)}
    assert "Convolutional network" in extended.run("dvc", "plots", "show", "--json")
    extended.commit("results")

    if run_all:
        changes = ("-S", "cnn.channels=[3]", "-S", "cnn.optimizer=adamw")
        extended.run("dvc", "exp", "run", *changes, "record@cnn")
        (_, experiment) = runs(store, "cnn")
        assert experiment.data.params["optimizer"] == "adamw"
        table = extended.run("python", "-m", "tools.compare", "cnn")
        assert "channels=3" in table and "optimizer=adamw" in table
        for model in new:
            done = extended.run("python", "-m", "tools.replay", runs(store, model)[-1].info.run_id)
            assert "identical" in done
