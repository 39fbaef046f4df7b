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


def test_each_row_of_the_third_study_adds_to_the_one_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added = {"plain": {}, "longer": {"epochs": "9"}, "wider": {"hidden": "512,256"}}
    monkeypatch.setattr(studies, "INGREDIENTS", added)
    changes = ("(baseline)", "epochs=9", "hidden=512,256 epochs=9", "hidden=512,256")
    rows = [
        ("mlp", change, str(seed), 0.8 + row / 100 + seed / 1000)
        for row, change in enumerate(changes)
        for seed in (1, 2, 3, 4, 5, 5)  # one of them again
    ]
    names = ["model", "changes", "params.seed", "metrics.validation_accuracy"]
    runs = pd.DataFrame(rows, columns=names).assign(**{"metrics.test_accuracy": 0.7})
    lines = studies.ingredient_table(runs).splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert found == [
        [name, "5", f"{mean} ± 0.0016", "0.7000 ± 0.0000"]
        for name, mean in (("plain", "0.8030"), ("longer", "0.8130"), ("wider", "0.8230"))
    ]
    with pytest.raises(InputError, match="wider: fewer than 5 seeds are recorded"):
        studies.ingredient_table(runs[runs["params.seed"].ne("4") | runs["changes"].ne(changes[2])])


def test_a_study_that_was_not_run_says_which_line_to_run(runs: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"two values of lr are recorded: .*studies\.md"):
        studies.chosen(runs, "softmax_regression", "lr", set())
