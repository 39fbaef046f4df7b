"""Regression and classification: the loss, the test metrics and the tables of each.

Sums of Python's floats are by math.fsum, which rounds once, and squares by multiplication, as `**`
uses the platform's own library.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.common.files import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lab.datasets import Examples

Rows = list[dict[str, Any]]


class Evaluation(NamedTuple):
    """What `evaluate` writes: metrics.json, predictions.csv and breakdown.csv."""

    metrics: Mapping[str, float | None]
    predictions: Rows
    breakdown: Rows


class Regression:
    """Real targets, float32 (N, 1)."""

    name = "regression"
    measures: tuple[str, ...] = ("loss",)
    outputs = 1

    def losses(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """½(ŷ - y)² per example, (N, 1) -> (N,). As in the book, with the ½ that nn.MSELoss lacks.

        Raises ValueError where the shapes differ: (N, 1) - (N,) would be (N, N) without a word.
        """
        if outputs.shape != targets.shape:
            raise ValueError(f"shapes differ: {tuple(outputs.shape)}, {tuple(targets.shape)}")
        return (0.5 * (outputs - targets) ** 2).squeeze(1)

    def measure(self, outputs: "Tensor", targets: "Tensor") -> dict[str, float]:
        """The mean loss."""
        return {"loss": _mean(self.losses(outputs, targets))}

    def evaluate(
        self,
        outputs: "Tensor",
        test: "Examples",
        train: "Examples",
        learned: list[float] | None,
        true: list[float] | None,
    ) -> Evaluation:
        """R², and for a linear model its weights beside the least-squares and the true ones.

        `learned` and `true` are the weights and, last, the bias; None where there are none.
        Raises InputError where they are of other features than the examples.
        """
        solutions = {"learned": learned, "analytic": analytic_solution(train), "true": true}
        width = test.features[0].numel() + 1
        for kind, values in solutions.items():
            if values and len(values) != width:
                raise InputError(f"expected {width} {kind} weights, found {len(values)}")
        metrics = self.measure(outputs, test.targets) | {"r2": r_squared(outputs, test.targets)}
        metrics = {f"test_{key}": value for key, value in metrics.items()}
        for a, b in (("learned", "analytic"), ("analytic", "true"), ("learned", "true")):
            if (first := solutions[a]) and (second := solutions[b]):
                squares = ((x - y) * (x - y) for x, y in zip(first, second, strict=True))
                metrics[f"distance_{a}_{b}"] = math.sqrt(math.fsum(squares))
        pairs = zip(test.targets.flatten().tolist(), outputs.flatten().tolist(), strict=True)
        predictions = [{"actual": actual, "predicted": predicted} for actual, predicted in pairs]
        names = [*(f"w{i}" for i in range(1, width)), "b"]
        breakdown = [
            {"parameter": name} | {kind: values and values[i] for kind, values in solutions.items()}
            for i, name in enumerate(names)
        ]
        return Evaluation(metrics, predictions, breakdown)


class Classification:
    """Classes as targets, int64 (N,)."""

    name = "classification"
    measures: tuple[str, ...] = ("accuracy", "loss")  # the first decides which model is better

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.outputs = len(classes)

    def losses(self, outputs: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        """-log softmax(outputs) at the target, per example, (N, classes), (N,) -> (N,).

        With smoothing s it is 1 - s times that, and s times its mean over all classes.
        """
        from torch.nn import functional as F

        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)

    def measure(self, outputs: "Tensor", targets: "Tensor") -> dict[str, float]:
        """The mean loss and the accuracy."""
        accuracy = int(correct(outputs, targets)) / len(targets)
        return {"loss": _mean(self.losses(outputs, targets)), "accuracy": accuracy}

    def evaluate(self, outputs: "Tensor", test: "Examples") -> Evaluation:
        """The confusion matrix, and per example the class with the largest probability.

        The matrix has a row per true class and a column per predicted one. Then the number of
        examples; recall = true positives / examples of the class; precision = true positives /
        examples predicted as it; None if the denominator is 0.
        """
        metrics = {f"test_{k}": v for k, v in self.measure(outputs, test.targets).items()}
        predicted = outputs.argmax(1)
        probability = outputs.softmax(1).gather(1, predicted[:, None]).flatten()
        columns = (test.targets.tolist(), predicted.tolist(), probability.tolist())
        predictions = [
            {"actual": self.classes[a], "predicted": self.classes[p], "probability": q}
            for a, p, q in zip(*columns, strict=True)
        ]
        n = self.outputs
        pairs = test.targets * n + predicted
        counts = pairs.bincount(minlength=n * n).view(n, n).tolist()
        breakdown = [
            {"actual": name, **dict(zip(self.classes, row, strict=True)), "examples": sum(row)}
            | {"recall": _share(row[i], sum(row))}
            | {"precision": _share(row[i], sum(other[i] for other in counts))}
            for i, (name, row) in enumerate(zip(self.classes, counts, strict=True))
        ]
        return Evaluation(metrics, predictions, breakdown)


Task = Regression | Classification


def correct(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """The number of examples whose largest output is that of their class, int64 ()."""
    return (outputs.argmax(1) == targets).sum()


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(losses: "Tensor") -> float:
    return math.fsum(losses.tolist()) / len(losses)


def r_squared(predicted: "Tensor", actual: "Tensor") -> float | None:
    """The share of the variance that is explained; None where there is no variance."""
    y = actual.flatten().double().tolist()
    residuals = (actual.double() - predicted.double()).flatten().tolist()
    mean = math.fsum(y) / len(y)
    variation = math.fsum((value - mean) * (value - mean) for value in y)
    return 1 - math.fsum(r * r for r in residuals) / variation if variation else None


def analytic_solution(examples: "Examples") -> list[float] | None:
    """The weights and, last, the bias that minimise the squared loss: (XᵀX)⁻¹Xᵀy.

    In rational arithmetic, each number rounded once at the end (the book, section 3.1).
    None where the minimum is not unique: examples that are too few, or dependent features.
    """
    rows = [
        [Fraction(x) for x in (*features, 1.0, target)]
        for features, (target,) in zip(
            examples.features.flatten(1).tolist(), examples.targets.tolist(), strict=True
        )
    ]
    d = len(rows[0]) - 1
    # Gaussian elimination of (XᵀX | Xᵀy); in rationals any pivot but 0 will do.
    m = [[sum((r[i] * r[j] for r in rows), Fraction(0)) for j in range(d + 1)] for i in range(d)]
    for i in range(d):
        pivot = next((k for k in range(i, d) if m[k][i]), None)
        if pivot is None:
            return None
        m[i], m[pivot] = m[pivot], m[i]
        m[i] = [value / m[i][i] for value in m[i]]
        for k in range(d):
            if k != i:
                m[k] = [a - m[k][i] * b for a, b in zip(m[k], m[i], strict=True)]
    return [float(row[d]) for row in m]
