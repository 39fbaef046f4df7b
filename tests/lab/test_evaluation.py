"""Measures agree with their definitions, written out or computed by another library."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lab import evaluation, files
from lab.datasets import Examples
from lab.params import CLASSES

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
OUTPUTS = torch.eye(10)[torch.tensor([0, 0, 1, 1, 2, 2])] * 3


def test_confusion_counts_each_pair() -> None:
    counts = evaluation.confusion(OUTPUTS, LABELS)
    assert counts[:3, :3].tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert counts.sum() == 6 and counts.shape == (10, 10)


def test_the_table_names_the_classes_and_has_precision_and_recall() -> None:
    table = evaluation.confusion_table(evaluation.confusion(OUTPUTS, LABELS))
    assert [row["actual"] for row in table] == list(CLASSES)
    assert table[0]["Trouser"] == 1  # a T-shirt taken for a trouser
    assert [(r["recall"], r["precision"], r["examples"]) for r in table[:4]] == [
        (2 / 3, 1, 3), (1 / 2, 1 / 2, 2), (1, 1 / 2, 1), (None, None, 0),
    ]  # fmt: skip


def test_predictions_name_the_class_and_its_probability() -> None:
    rows = evaluation.predicted_classes(OUTPUTS, LABELS)
    assert rows[2]["actual"] == "T-shirt/top" and rows[2]["predicted"] == "Trouser"
    assert rows[2]["probability"] == pytest.approx(np.exp(3) / (np.exp(3) + 9))
    values = evaluation.predicted_values(torch.tensor([[1.5]]), torch.tensor([[2.5]]))
    assert values == [{"actual": 2.5, "predicted": 1.5}]


def test_r_squared() -> None:
    y = torch.tensor([[1.0], [2.0], [3.0]])
    assert evaluation.r_squared(y, y) == 1
    assert evaluation.r_squared(torch.full((3, 1), 2.0), y) == 0
    assert evaluation.r_squared(torch.tensor([[1.0], [2.0], [4.0]]), y) == 0.5
    assert evaluation.r_squared(y, torch.ones(3, 1)) is None


def test_the_analytic_solution_is_the_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    y = torch.randn(50, 1, generator=generator)
    solution = evaluation.analytic_solution(Examples(x, y))
    design = np.hstack([x.numpy().astype(float), np.ones((50, 1))])
    expected, *_ = np.linalg.lstsq(design, y.numpy().astype(float).ravel(), rcond=None)
    assert solution == pytest.approx(expected, rel=1e-12)


def test_the_analytic_solution_is_rounded_once() -> None:
    # By hand: the line through (0, 1) and (3, 2) has slope 1/3, in float64 the nearest to it.
    examples = Examples(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [2.0]]))
    assert evaluation.analytic_solution(examples) == [float(Fraction(1, 3)), 1.0]
    # A first pivot of 0 needs an exchange of rows.
    zero = Examples(torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), torch.ones(3, 1))
    assert evaluation.analytic_solution(zero) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "x", [[[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], [[1.0, 2.0]]]
)
def test_examples_that_determine_nothing_are_refused(x: list[list[float]]) -> None:
    with pytest.raises(files.InputError, match="do not determine the weights"):
        evaluation.analytic_solution(Examples(torch.tensor(x), torch.ones(len(x), 1)))


def test_the_three_solutions_stand_side_by_side() -> None:
    first, last = evaluation.solutions([1.0, 5.0], [2.0, 5.0], [4.0, 6.0])
    assert first == {
        "parameter": "w1", "learned": 1.0, "analytic": 2.0, "true": 4.0,
        "learned - analytic": -1.0, "analytic - true": -2.0, "learned - true": -3.0,
    }  # fmt: skip
    assert last["parameter"] == "b"
    assert evaluation.distance([0.0, 0.0], [3.0, 4.0]) == 5.0
