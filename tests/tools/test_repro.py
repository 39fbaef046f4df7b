"""`make repro` says what it does while it does it, and what came out."""

import re
import shutil
from pathlib import Path

import pytest

from lab import params
from lab.common import files
from tests.conftest import Clone, Program
from tools import repro
from tracking.repository import ROOT


@pytest.mark.slow
def test_it_numbers_the_stages_and_prints_a_result_per_model_and_what_to_try(clone: Clone) -> None:
    Path("results/mlp/history.csv").unlink()  # which DVC's run-cache has
    Path("results/mlp/receipt.json").unlink()  # which it has not
    printed = clone.run("python", "-m", "tools.repro")
    lines = re.findall(r"^\[(\d+)/11\] (.+)", printed, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 12))
    cached, ran = [line for _, line in lines if "didn't change" not in line]
    assert "train@mlp' is cached" in cached and ran == "Running stage 'record@mlp':"
    accuracy = files.read_json(Path("results/mlp/metrics.json"))["test_accuracy"]
    mlp = rf"^Multilayer perceptron +accuracy {accuracy:.4f}, loss \d\.\d+, \d+ s$"
    assert re.search(mlp, printed, re.MULTILINE)
    assert len(re.findall(", unchanged$", printed, re.MULTILINE)) == 2
    for command in ("make ui", "make compare", "dvc exp run -S lr=0.1"):
        assert command in printed.split("Try next:")[1]
    assert clone.run("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_it_fails_where_a_stage_does_and_prints_no_results(clone: Clone) -> None:
    Path("stages/evaluate.py").write_text("raise SystemExit('error: no evaluation')\n")
    done = clone.try_("python", "-m", "tools.repro")
    assert done.returncode not in (0, 1) and "error: no evaluation" in done.stderr
    assert "Traceback" not in done.stderr and "Try next" not in done.stdout


def test_a_mistake_in_dvc_yaml_is_one_line(git: Clone, in_process: Program) -> None:
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    shutil.copytree(ROOT / ".dvc", ".dvc", ignore=lambda *_: {"cache", "tmp"})
    Path("dvc.yaml").write_text("stages:\n  x:\n    foreach: ${modelz}\n    do:\n      cmd: x\n")
    git.commit("all")
    done = in_process(repro)
    assert done.returncode == 1
    assert "modelz" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_an_undefined_metric_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    p = params.load(ROOT / "tests/params.yaml")
    files.write_json(Path("results/mlp/metrics.json"), {"test_loss": 0.5, "test_r2": None})
    found = repro.result(p, "mlp", {"train@linear_regression": 9.0, "train@mlp": 1.0})
    assert found.split("  ")[-1].strip() == "loss 0.50000, 1 s"
