"""The report of a pull request says what the change does, from real pipelines on both sides."""

import re
from pathlib import Path

import pytest

from tests.conftest import Clone, Program
from tools import report


@pytest.mark.parametrize("x", [4.2929e-05, 0.5, 123456.0, 0.0])
def test_a_number_in_a_chart_has_no_exponent(x: float) -> None:
    text = report.decimal(x)
    assert re.fullmatch(r"\d+\.\d*", text) and float(text) == pytest.approx(x, rel=1e-4)


@pytest.mark.slow
def test_a_change_is_reported_with_its_effect(clone: Clone) -> None:
    command = ("python", "-m", "tools.report", clone.run("git", "rev-parse", "HEAD").strip())
    printed = clone.run(*command)
    assert "**Reproduced:**" in printed
    assert printed.count("No change.") == 2 and "No curve changed." in printed

    with Path("dvc.lock").open("a") as lock:
        lock.write("\n")
    Path("README.md").write_text("")  # which no result comes from
    printed = clone.run(*command)
    assert "**Not reproduced.**" in printed and "dvc.lock" in printed

    clone.edit({"lr: 0.03": "lr: 0.04"})
    clone.run("dvc", "repro", "evaluate@linear_regression")
    printed = clone.run(*command)
    assert "**Not committed:**" in printed and "these sources: `params.yaml`" in printed

    clone.commit("another learning rate")
    printed = clone.run(*command)
    assert "**Not run.**" in printed and "train@mlp" in printed
    parameters, metrics = printed.split("### Metrics")
    assert all(text in parameters for text in ("| params.yaml | lr ", "| 0.03 ", "| 0.04 "))
    assert "distance_learned_true" in metrics
    assert "Linear regression, validation loss by epoch" in metrics
    assert metrics.count("  line [") == 2
    assert Path("dvc_plots/index.html").exists()
    assert clone.run("git", "status", "--porcelain") == ""


def test_an_unknown_revision_is_one_line(in_process: Program) -> None:
    done = in_process(report, "nowhere")
    assert done.returncode == 1
    assert done.stderr == "error: nowhere: no commit of this repository\n"
