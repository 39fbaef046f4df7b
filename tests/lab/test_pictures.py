"""Pictures show what the tables say: their titles, labels and pixels are read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab import files, pictures
from lab.files import InputError
from lab.params import CLASSES, FASHION_MNIST

HISTORY = [
    {
        "epoch": float(e), "train_loss": 1 / e, "train_accuracy": 0.5 + e / 10,
        "validation_loss": 2 / e, "validation_accuracy": 0.4 + e / 10,
        "gradient_norm_hidden_1": 10.0**-e, "gradient_norm_output": 1.0,
    }
    for e in (1, 2, 3)
]  # fmt: skip
PREDICTIONS = [
    {"actual": CLASSES[i % 10], "predicted": CLASSES[0], "probability": f"{i / 100}"}
    for i in range(20)
]


def pixels(axes: Any) -> Any:
    return axes.images[0].get_array()


def heights(line: Any) -> list[float]:
    return list(line.get_ydata())


def test_curves_have_a_line_per_column_and_name_every_axis() -> None:
    loss, accuracy, norms = pictures.curves(HISTORY, "A model").axes
    assert [line.get_label() for line in norms.lines] == ["hidden 1", "output"]
    assert heights(loss.lines[1]) == [2, 1, 2 / 3]
    assert norms.get_yscale() == "log" and loss.get_yscale() == "linear"
    assert all(
        axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in (loss, accuracy, norms)
    )


def test_a_confusion_matrix_has_counts_class_names_and_the_share_of_the_true_class() -> None:
    counts = np.arange(100).reshape(10, 10)
    table = [
        {"actual": name} | {column: str(n) for column, n in zip(CLASSES, row, strict=True)}
        for name, row in zip(CLASSES, counts, strict=True)
    ]
    axes = pictures.confusion(table, "A model").axes[0]
    assert [text.get_text() for text in axes.texts] == [str(n) for n in range(100)]
    assert axes.get_title() == "A model: 495 of 4,950 test images right (10.00%)"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert np.allclose(pixels(axes), counts / counts.sum(1, keepdims=True))


def test_mistakes_are_the_most_confident_ones_beside_their_images() -> None:
    images = np.arange(20, dtype=np.uint8)[:, None, None] + np.zeros((1, 28, 28), np.uint8)
    figure = pictures.mistakes({"images": images}, PREDICTIONS, "A model")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 18  # of 20 examples two are right
    first = shown[0]
    assert first.get_title() == "no. 19: Ankle boot\ntaken for T-shirt/top\nwith p = 0.190"
    assert (pixels(first) == 19).all()
    assert "taken for" in shown[-1].get_title() and "0.010" in shown[-1].get_title()


def test_templates_are_named_by_class_and_share_one_scale() -> None:
    weights = np.linspace(-1, 1, 7840, dtype=np.float32).reshape(10, 784)
    axes = pictures.templates({"output.weight": weights}, "A model").axes[:10]
    assert [a.get_title() for a in axes] == list(CLASSES)
    assert len({a.images[0].get_clim() for a in axes}) == 1
    assert np.array_equal(pixels(axes[3]), weights[3].reshape(28, 28))


@pytest.mark.parametrize("units", [1, 63, 100])
def test_filters_are_the_strongest_units(units: int) -> None:
    weights = np.ones((units, 784), np.float32) * np.arange(1, units + 1)[:, None]
    axes = [a for a in pictures.filters({"hidden_1.weight": weights}, "A model").axes if a.images]
    assert axes[0].get_title() == f"unit {units - 1}"
    assert len(axes) == min(units, 64)


def test_a_fit_draws_the_three_lines_of_every_feature() -> None:
    examples = [{"x1": x, "x2": -x, "y": 2 * x + 3 * -x + 1} for x in (-1.0, 0.0, 2.0)]
    solution = [
        {"parameter": "w1", "true": "2", "analytic": "2.5", "learned": "3"},
        {"parameter": "w2", "true": "3", "analytic": "3", "learned": "3"},
        {"parameter": "b", "true": "1", "analytic": "1", "learned": "1"},
    ]
    first, _, below, _ = pictures.fit(examples, solution, "A model").axes
    points, true, analytic, learned = first.lines
    assert heights(points) == [-2, 0, 4]
    assert [heights(line) for line in (true, analytic, learned)] == [
        [-2, 4], [-2.5, 5], [-3, 6]
    ]  # fmt: skip
    assert heights(below.lines[3]) == [-1, 2]  # learned less true


def test_a_table_of_something_else_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("results/mlp")
    files.write_csv(folder / "confusion.csv", [{"other": 1}])
    files.write_csv(folder / "predictions.csv", PREDICTIONS)
    import torch

    files.write_tensors(FASHION_MNIST / "test.safetensors", {"images": torch.zeros(20, 28, 28)})
    files.write_tensors(folder / "model.safetensors", {"hidden_1.weight": torch.zeros(2, 784)})
    with pytest.raises(InputError, match=r"confusion\.csv: not what this pipeline writes"):
        pictures.draw("mlp", folder, HISTORY)
