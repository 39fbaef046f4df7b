"""Losses and measures agree with their definitions, or with another library."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.common.files import InputError
from lab.datasets import Examples
from lab.datasets.fashion_mnist import CLASSES
from lab.tasks import Classification, Regression, analytic_solution, r_squared

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
OUTPUTS = torch.eye(10)[torch.tensor([0, 0, 1, 1, 2, 2])] * 3


@pytest.mark.parametrize("targets", [torch.zeros(3), torch.zeros(1, 3), torch.zeros(2, 1)])
def test_the_squared_loss_does_not_broadcast(targets: Tensor) -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        Regression().losses(torch.zeros(3, 1), targets)


def test_classes_have_cross_entropy_and_accuracy() -> None:
    uniform = Classification("abcd").losses(torch.zeros(2, 4), torch.tensor([0, 3]))
    assert uniform.tolist() == pytest.approx([math.log(4)] * 2)
    right, wrong = (-math.log(math.exp(logit) / (math.exp(3) + 9)) for logit in (3, 0))
    task, share = Classification(CLASSES), 0.1 / len(CLASSES)  # of each class, smoothed by 0.1
    smoothed = task.losses(torch.tensor([[3.0, *[0.0] * 9]]), torch.tensor([0]), 0.1)
    assert smoothed.item() == pytest.approx((0.9 + share) * right + 9 * share * wrong)
    measures = task.measure(OUTPUTS, LABELS)
    assert measures == pytest.approx({"loss": (4 * right + 2 * wrong) / 6, "accuracy": 4 / 6})


def test_a_classification_has_a_confusion_matrix_and_probabilities() -> None:
    task, test = Classification(CLASSES), Examples(torch.zeros(6, 1), LABELS)
    metrics, predictions, table = task.evaluate(OUTPUTS, test)
    assert metrics == {f"test_{k}": v for k, v in task.measure(OUTPUTS, LABELS).items()}
    assert predictions[2]["actual"] == "T-shirt/top" and predictions[2]["predicted"] == "Trouser"
    assert predictions[2]["probability"] == pytest.approx(math.exp(3) / (math.exp(3) + 9))
    assert [row["actual"] for row in table] == list(CLASSES)
    counts = [[row[name] for name in CLASSES] for row in table]
    assert [row[:3] for row in counts[:3]] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert sum(map(sum, counts)) == 6
    assert [(r["recall"], r["precision"], r["examples"]) for r in table[:4]] == [
        (2 / 3, 1, 3),
        (1 / 2, 1 / 2, 2),
        (1, 1 / 2, 1),
        (None, None, 0),
    ]


def test_r_squared() -> None:
    y = torch.tensor([[1.0], [2.0], [3.0]])
    assert r_squared(y, y) == 1
    assert r_squared(torch.full((3, 1), 2.0), y) == 0
    assert r_squared(torch.tensor([[1.0], [2.0], [4.0]]), y) == 0.5
    assert r_squared(y, torch.ones(3, 1)) is None


def test_the_analytic_solution_is_the_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    y = torch.randn(50, 1, generator=generator)
    design = np.hstack([x.numpy().astype(float), np.ones((50, 1))])
    expected, *_ = np.linalg.lstsq(design, y.numpy().astype(float).ravel(), rcond=None)
    assert analytic_solution(Examples(x, y)) == pytest.approx(expected, rel=1e-12)


def test_the_analytic_solution_is_rounded_once() -> None:
    # By hand: the line through (0, 1) and (3, 2) has slope 1/3, in float64 the nearest to it.
    examples = Examples(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [2.0]]))
    assert analytic_solution(examples) == [float(Fraction(1, 3)), 1.0]
    # A first pivot of 0 needs an exchange of rows.
    zero = Examples(torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), torch.ones(3, 1))
    assert analytic_solution(zero) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "x", [[[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], [[1.0, 2.0]]]
)
def test_without_a_unique_minimum_there_is_no_analytic_solution(x: list[list[float]]) -> None:
    examples = Examples(torch.tensor(x), torch.ones(len(x), 1))
    assert analytic_solution(examples) is None
    evaluation = Regression().evaluate(examples.targets, examples, examples, None, [4.0, 5.0, 6.0])
    assert evaluation.metrics.keys() == {"test_loss", "test_r2"}  # and no distances
    assert list(evaluation.breakdown[2].values()) == ["b", None, None, 6.0]


def test_a_regression_compares_learned_analytic_and_true_weights() -> None:
    test = Examples(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]]))  # y = 2x + 1
    outputs = torch.tensor([[1.0], [2.0]])
    metrics, predictions, table = Regression().evaluate(outputs, test, test, [1.0, 1.0], [5.0, 5.0])
    assert metrics == {
        "test_loss": 0.25,
        "test_r2": 0.5,
        "distance_learned_analytic": 1.0,
        "distance_analytic_true": 5.0,
        "distance_learned_true": math.sqrt(32),
    }
    assert predictions[1] == {"actual": 3.0, "predicted": 2.0}
    assert table == [
        {"parameter": "w1", "learned": 1.0, "analytic": 2.0, "true": 5.0},
        {"parameter": "b", "learned": 1.0, "analytic": 1.0, "true": 5.0},
    ]
    with pytest.raises(InputError, match="expected 2 true weights, found 3"):
        Regression().evaluate(outputs, test, test, None, [1.0, 2.0, 3.0])
