"""A run's description says what the run is, its results, and how it differs from its commit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import params
from lab.common import files
from tests.conftest import Clone
from tests.inputs import GOOD
from tracking import description, repository

HISTORY = [{"epoch": e, "validation_loss": v} for e, v in ((1.0, 0.5), (2.0, 0.25), (3.0, 0.4))]
METRICS = "results/mlp/metrics.json"
Describe = Callable[[str, dict[str, str]], list[str]]


@pytest.fixture
def describe(git: Clone, monkeypatch: pytest.MonkeyPatch) -> Describe:
    """A function that describes a run with these parameters, from a commit of these files."""
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)

    def describe(text: str, committed: dict[str, str]) -> list[str]:
        for name, contents in committed.items():
            files.write_text(Path(name), contents)
        git.commit("first")
        metrics = {"test_accuracy": 0.8, "test_loss": 0.5, "test_r2": None}
        run = description.describe("mlp", params.parse(text), HISTORY, metrics, "r1")
        return run.splitlines()

    return describe


def test_it_has_the_result_the_baseline_the_difference_and_the_way_to_replay(
    describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "faster")
    committed = {"params.yaml": GOOD, METRICS: json.dumps({"test_accuracy": 0.75})}
    changed = GOOD.replace("lr: 0.03", "lr: 0.1").replace("momentum: 0.9", "momentum: 0.8")
    title, replay, tested, differing, trained = describe(changed, committed)
    commit = repository.head()[:7]
    assert title == f"**Multilayer perceptron**, experiment *faster* on commit `{commit}`"
    assert "`make replay RUN=r1`" in replay
    assert tested.endswith("accuracy 0.8000, loss 0.50000 (committed there: accuracy 0.7500)")
    assert differing.endswith("lr = 0.1 (there: 0.03), optimizer.momentum = 0.8 (there: 0.9)")
    assert "lowest validation loss 0.25 in epoch 2" in trained


@pytest.mark.parametrize(
    "committed",
    [
        {},
        {"params.yaml": "lr: [", METRICS: "{"},
        {"params.yaml": GOOD.replace("mlp:", "other:"), METRICS: "{}"},
    ],
)
def test_a_commit_without_the_model_is_no_obstacle(
    describe: Describe, committed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    title, _, tested, differing, _ = describe(GOOD, committed)
    assert title.endswith(f"of commit `{repository.head()[:7]}`")
    assert "committed there" not in tested and differing.endswith("the commit has no such model")
