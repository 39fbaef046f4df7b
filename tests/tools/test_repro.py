"""`make repro` says what it does while it does it, and what came out."""

import re

import pytest

from lab import files
from lab.params import MODELS
from stages import evaluate
from tests.conftest import Clone
from tools import repro

pytestmark = pytest.mark.slow


def test_it_numbers_the_stages_and_prints_a_result_per_model_and_what_to_try(clone: Clone) -> None:
    (clone.folder / "results/mlp/history.csv").unlink()  # which DVC's run-cache has
    (clone.folder / "results/mlp/receipt.json").unlink()  # which it has not
    said = clone.run("python", "-m", "tools.repro")
    lines = re.findall(r"^\[(\d+)/11\] (.+)", said, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 12))
    changed = [line for _, line in lines if "didn't change" not in line]
    cached, ran = changed
    assert "train@mlp' is cached" in cached and ran == "Running stage 'record@mlp':"
    results = said.splitlines()
    accuracy = files.read_json(clone.folder / "results/mlp/metrics.json")["test_accuracy"]
    (mlp,) = [line for line in results if line.startswith("Multilayer perceptron")]
    assert re.search(rf"accuracy {accuracy:.4f}, loss \d\.\d+, \d+ s$", mlp)
    assert sum(line.endswith(", unchanged") for line in results) == len(MODELS) - 1
    for command in ("make ui", "make compare", "dvc exp run -S lr=0.1"):
        assert command in said.split("Try next:")[1]
    assert clone.run("git", "status", "--porcelain") == ""


def test_it_fails_where_a_stage_does_and_prints_no_results(clone: Clone) -> None:
    path = clone.folder / "stages/evaluate.py"
    path.write_text(f"raise SystemExit('error: no {evaluate.__name__}')\n")
    done = clone.try_("python", "-m", "tools.repro")
    assert done.returncode not in (0, 1) and "error: no stages.evaluate" in done.stderr
    assert "Traceback" not in done.stderr and "Try next" not in done.stdout


def test_an_undefined_metric_is_left_out(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.folder)
    folder = clone.folder / "results/linear_regression"
    files.write_json(folder / "metrics.json", {"test_loss": 0.5, "test_r2": None})
    found = repro.result("linear_regression", {"train@linear_regression": 1.0, "train@mlp": 9.0})
    assert found.split("  ")[-1].strip() == "loss 0.50000, 1 s"
