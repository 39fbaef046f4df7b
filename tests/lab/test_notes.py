"""A run's description says what it is, what came out, and what was asked otherwise."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import notes, params, repository

ROOT = Path(__file__).parents[2]
HISTORY = [
    {"epoch": 1.0, "validation_loss": 0.5},
    {"epoch": 2.0, "validation_loss": 0.25},
    {"epoch": 3.0, "validation_loss": 0.4},
]


def holding(files: dict[str, str]) -> Callable[[str, str], str | None]:
    return lambda commit, path: files.get(path)


@pytest.fixture
def text() -> str:
    return (ROOT / "tests/params.yaml").read_text(encoding="utf-8")


def test_it_names_result_baseline_difference_and_the_way_to_replay(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = json.dumps({"test_accuracy": 0.75})
    commit = holding({"params.yaml": text, "results/mlp/metrics.json": metrics})
    monkeypatch.setattr(repository, "committed", commit)
    monkeypatch.setenv("DVC_EXP_NAME", "faster")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789")
    p = params.parse(text.replace("lr: 0.03", "lr: 0.1"))
    said = notes.describe("mlp", p, HISTORY, {"test_accuracy": 0.8, "test_loss": 0.5}, "r1")
    first, replay, tested, asked, trained = said.splitlines()
    assert first == "**Multilayer perceptron**, experiment *faster* on commit `0123456`"
    assert "accuracy 0.8, loss 0.5 (committed there: accuracy 0.75)" in tested
    assert asked.endswith("lr = 0.1 (there: 0.03)")
    assert "lowest validation loss 0.25 in epoch 2" in trained
    assert "`make replay RUN=r1`" in replay


@pytest.mark.parametrize("old", [{}, {"params.yaml": "lr: [", "results/mlp/metrics.json": "{"}])
def test_a_commit_without_the_pipeline_is_no_obstacle(
    text: str, old: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "committed", holding(old))
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789")
    said = notes.describe("mlp", params.parse(text), HISTORY, {"test_loss": 0.5}, "r1")
    assert "of commit `0123456`" in said and "committed there" not in said
