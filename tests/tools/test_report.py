"""The report of a pull request says what the change does, from real pipelines on both sides."""

import pytest

from tests.conftest import Clone, Program
from tools import report

pytestmark = pytest.mark.slow


def test_a_change_of_a_parameter_is_reported_with_its_effect(clone: Clone) -> None:
    target = "evaluate@linear_regression"
    command = ("python", "-m", "tools.report", clone.run("git", "rev-parse", "HEAD").strip())

    clone.edit({"lr: 0.03": "lr: 0.04"})
    clone.run("dvc", "repro", target)
    said = clone.run(*command)
    assert "**Not committed:**" in said and "comes from: `params.yaml`" in said

    clone.commit("another learning rate")
    said = clone.run(*command)
    assert "**Not run.**" in said and "train@mlp" in said
    asked, measured = said.split("### Metrics")
    assert "| params.yaml | lr " in asked and "| 0.03 " in asked and "| 0.04 " in asked
    assert "distance_learned_true" in measured
    assert "Linear regression, validation loss by epoch" in measured
    assert measured.count("  line [") == 2
    assert (clone.folder / "dvc_plots/index.html").exists()
    assert clone.run("git", "status", "--porcelain") == ""


def test_a_change_of_nothing_is_reported_as_such(clone: Clone) -> None:
    said = clone.run("python", "-m", "tools.report", "HEAD")
    assert "**Reproduced:**" in said
    assert said.count("No change.") == 2 and "No curve changed." in said

    lock = clone.folder / "dvc.lock"
    lock.write_text(lock.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    (clone.folder / "README.md").write_text("", encoding="utf-8")  # which no result comes from
    said = clone.run("python", "-m", "tools.report", "HEAD")
    assert "**Not reproduced.**" in said and "dvc.lock" in said


def test_an_unknown_revision_is_one_line(in_process: Program) -> None:
    done = in_process(report, "nowhere")
    assert done.returncode == 1
    assert done.stderr == "error: nowhere: no commit of this repository\n"
