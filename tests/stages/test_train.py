"""What `stages.train` writes, and the examples that it and `stages.evaluate` refuse."""

import shutil
from pathlib import Path

import pytest
import torch

from lab.datasets import Examples
from lab.datasets.regression_data import RegressionData
from stages import evaluate, train
from tests.conftest import Program
from tracking.repository import ROOT

GOOD = Examples(torch.ones(30, 2), torch.ones(30, 1))
BAD = Examples(torch.ones(30, 2), torch.full((30, 1), torch.nan))


def test_examples_are_checked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Program
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    refused = "error: data/regression_data: a number is missing, NaN or infinite\n"
    for bad in ((BAD, GOOD), (GOOD, BAD)):
        monkeypatch.setattr(RegressionData, "load_training", lambda *_, bad=bad: bad)
        assert in_process(train, "linear_regression").stderr == refused
    monkeypatch.setattr(RegressionData, "load_test", lambda *_: BAD)
    assert in_process(evaluate, "linear_regression").stderr == refused
    assert not Path("results").exists()
    monkeypatch.setattr(RegressionData, "load_training", lambda *_: (GOOD, GOOD))
    assert in_process(train, "linear_regression").returncode == 0  # the control


def test_gradient_norms_become_rows() -> None:
    row = {"train_loss": 2.0, "gradient_norm_hidden_1": 0.1, "gradient_norm_output": 0.5}
    expected = [{"layer": "hidden_1", "norm": 0.1}, {"layer": "output", "norm": 0.5}]
    assert train.gradient_norms([{"epoch": epoch} | row for epoch in (1, 2)]) == [
        {"epoch": epoch} | cells for epoch in (1, 2) for cells in expected
    ]
