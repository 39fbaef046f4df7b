"""The tables of docs/studies.md come from the runs that fit the study, and from no other."""

import pandas as pd
import pytest

from lab.common.files import InputError
from tools import studies

DEEP = "hidden=128,128,128,128"


@pytest.fixture
def runs() -> pd.DataFrame:
    """As `tools.compare.recorded` gives them, newest first."""
    rows = [
        ("mlp", f"{DEEP} activation=tanh", "tanh", "0.03", 0.8),
        ("mlp", DEEP, "relu", "0.03", 0.9),
        ("mlp", DEEP, "relu", "0.03", 0.1),  # older
        ("mlp", f"lr=0.1 {DEEP}", "relu", "0.1", 0.2),  # of no study
        ("mlp", "(baseline)", "relu", "0.03", 0.7),
        ("mlp", "lr=0.1", "relu", "0.1", 0.6),
        ("softmax_regression", "lr=0.1", "", "0.1", 0.5),
    ]
    names = ["model", "changes", "params.activation", "params.lr", "metrics.validation_accuracy"]
    others = {"test_accuracy": 0, "gradient_norm_hidden_1": 1, "gradient_norm_output": 0.25}
    table = pd.DataFrame(rows, columns=names)
    return table.assign(**{f"metrics.{name}": value for name, value in others.items()})


def test_a_table_has_the_newest_run_of_each_value_best_first_or_in_order(
    runs: pd.DataFrame,
) -> None:
    activations = studies.activation_table(studies.chosen(runs, "mlp", "activation", {DEEP}))
    rows = [line.split()[1:4:2] for line in activations.splitlines()[2:]]
    assert rows == [["relu", "0.9000"], ["tanh", "0.8000"]] and "0.2500" in activations
    rates = studies.rate_table({"MLP": studies.chosen(runs, "mlp", "lr", set())})
    rows = [line.split()[1:4:2] for line in rates.splitlines()[2:]]
    assert rows == [["0.03", "0.7000"], ["0.1", "0.6000"]]


def test_a_study_that_was_not_run_says_which_line_to_run(runs: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"two values of lr are recorded: .*studies\.md"):
        studies.chosen(runs, "softmax_regression", "lr", set())
