"""What a trained model is worth on examples that it never saw.

Sums of Python's floats are by math.fsum, which rounds once, and squares by
multiplication, as `**` uses the platform's own library.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lab.datasets import Examples
from lab.files import InputError
from lab.params import CLASSES

Rows = list[dict[str, Any]]


def predicted_values(outputs: Tensor, targets: Tensor) -> Rows:
    """Per example the true value and the predicted one."""
    pairs = zip(targets.flatten().tolist(), outputs.flatten().tolist(), strict=True)
    return [{"actual": a, "predicted": p} for a, p in pairs]


def predicted_classes(outputs: Tensor, labels: Tensor) -> Rows:
    """Per example the true class, the predicted one and the probability given to it."""
    probability, predicted = outputs.softmax(1).max(1)
    return [
        {"actual": CLASSES[a], "predicted": CLASSES[p], "probability": q}
        for a, p, q in zip(labels.tolist(), predicted.tolist(), probability.tolist(), strict=True)
    ]


def confusion(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many examples of class i were taken for class j, int64 (classes, classes)."""
    n = len(CLASSES)
    return torch.bincount(labels * n + outputs.argmax(1), minlength=n * n).view(n, n)


def confusion_table(counts: Tensor) -> Rows:
    """The confusion matrix: a row per true class, a column per predicted one, and its margins.

    These are the number of examples of the class; the recall, the share of them that
    were taken for it; and the precision, the share of those taken for it that are of
    it. A share is empty where there is nothing to take it of.
    """
    columns = (counts.diagonal(), counts.sum(1), counts.sum(0))
    rows = zip(CLASSES, counts.tolist(), *(column.tolist() for column in columns), strict=True)
    return [
        {"actual": name, **dict(zip(CLASSES, row, strict=True))}
        | {
            "examples": n,
            "recall": right / n if n else None,
            "precision": right / taken if taken else None,
        }
        for name, row, right, n, taken in rows
    ]


def r_squared(predicted: Tensor, actual: Tensor) -> float | None:
    """The share of the variance that is explained; None where there is no variance."""
    y = actual.flatten().double().tolist()
    residuals = (actual.double() - predicted.double()).flatten().tolist()
    centre = math.fsum(y) / len(y)
    variation = math.fsum((value - centre) * (value - centre) for value in y)
    return 1 - math.fsum(r * r for r in residuals) / variation if variation else None


def analytic_solution(examples: Examples) -> list[float]:
    """The weights and, last, the bias that minimise the squared loss: (XᵀX)⁻¹Xᵀy.

    In rational arithmetic, each number rounded once at the end (the book, section 3.1).
    Raises InputError where the minimum is not unique.
    """
    rows = [
        [Fraction(x) for x in (*features, 1.0, target)]
        for features, (target,) in zip(
            examples.features.tolist(), examples.targets.tolist(), strict=True
        )
    ]
    d = len(rows[0]) - 1
    # Gaussian elimination of (XᵀX | Xᵀy); in rationals any pivot but 0 will do.
    m = [[sum((r[i] * r[j] for r in rows), Fraction(0)) for j in range(d + 1)] for i in range(d)]
    for i in range(d):
        pivot = next((k for k in range(i, d) if m[k][i]), None)
        if pivot is None:
            raise InputError(
                "the training examples do not determine the weights: too few, or dependent"
            )
        m[i], m[pivot] = m[pivot], m[i]
        m[i] = [value / m[i][i] for value in m[i]]
        for k in range(d):
            if k != i:
                m[k] = [a - m[k][i] * b for a, b in zip(m[k], m[i], strict=True)]
    return [float(row[d]) for row in m]


def solutions(learned: Sequence[float], analytic: Sequence[float], true: Sequence[float]) -> Rows:
    """The book's comparison, one row per parameter: the three values and their differences."""
    names = [f"w{i}" for i in range(1, len(true))] + ["b"]
    return [
        {
            "parameter": name, "learned": by_sgd, "analytic": exact, "true": truth,
            "learned - analytic": by_sgd - exact,
            "analytic - true": exact - truth,
            "learned - true": by_sgd - truth,
        }
        for name, by_sgd, exact, truth in zip(names, learned, analytic, true, strict=True)
    ]  # fmt: skip


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """The Euclidean distance."""
    return math.sqrt(math.fsum((x - y) * (x - y) for x, y in zip(a, b, strict=True)))
