"""The tables of docs/studies.md come from the runs that fit the study, and from no other."""

import pandas as pd
import pytest

from benchmarks import studies
from lab.files import InputError

DEEP = "hidden=128,128,128,128"


def runs() -> pd.DataFrame:
    """As `tools.compare.recorded` gives them, newest first."""
    rows = [
        # model, changes, activation, lr, validation accuracy
        ("mlp", f"{DEEP} activation=tanh", "tanh", "0.03", 0.8),
        ("mlp", DEEP, "relu", "0.03", 0.9),
        ("mlp", DEEP, "relu", "0.03", 0.1),  # older
        ("mlp", f"lr=0.1 {DEEP}", "relu", "0.1", 0.2),  # of no study
        ("mlp", "(baseline)", "relu", "0.03", 0.7),
        ("mlp", "lr=0.1", "relu", "0.1", 0.6),
        ("softmax_regression", "lr=0.1", "", "0.1", 0.5),
    ]
    names = ["model", "changes", "params.activation", "params.lr", "metrics.validation_accuracy"]
    table = pd.DataFrame(rows, columns=names)
    for number, metric in enumerate(("test_accuracy", "gradient_norm_hidden_1")):
        table[f"metrics.{metric}"] = number
    return table.assign(**{"metrics.gradient_norm_output": 0.25})


def test_a_study_takes_the_newest_run_of_each_value_and_the_rest_as_committed() -> None:
    found = studies.chosen(runs(), "mlp", "activation", {DEEP})
    assert dict(found["metrics.validation_accuracy"]) == {"tanh": 0.8, "relu": 0.9}
    found = studies.chosen(runs(), "mlp", "lr", set())
    assert dict(found["metrics.validation_accuracy"]) == {"0.03": 0.7, "0.1": 0.6}


def test_a_study_that_was_not_run_says_which_line_to_run() -> None:
    with pytest.raises(InputError, match=r"two values of lr are recorded: .*studies\.md"):
        studies.chosen(runs(), "softmax_regression", "lr", set())


def test_the_tables_have_a_row_per_value_best_first_or_in_order() -> None:
    table = studies.activation_table(studies.chosen(runs(), "mlp", "activation", {DEEP}))
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["relu", "tanh"]
    assert "0.9000" in table and "0.2500" in table
    table = studies.rate_table({"mlp": studies.chosen(runs(), "mlp", "lr", set())})
    assert [line.split()[1:4:2] for line in table.splitlines()[2:]] == [
        ["0.03", "0.7000"], ["0.1", "0.6000"]
    ]  # fmt: skip
