"""Figures show what the tables say: their titles, labels and pixels are read back."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lab import params, schema
from lab.common import files
from lab.common.files import InputError
from lab.datasets import Examples
from lab.datasets.fashion_mnist import CLASSES
from lab.models import Architecture
from lab.networks import Model, Shape
from tracking import figures
from tracking.repository import ROOT

HISTORY = [
    {"epoch": float(e), "train_loss": 1 / e, "validation_loss": 2 / e}
    | {"train_accuracy": 0.5 + e / 10, "validation_accuracy": 0.4 + e / 10}
    | {"gradient_norm_hidden_1": 10.0**-e, "gradient_norm_output": 1.0}
    for e in (1, 2, 3)
]
PREDICTIONS = [
    {"actual": CLASSES[i % 10], "predicted": CLASSES[0], "probability": f"{i / 100}"}
    for i in range(20)
]
COUNTS = np.arange(100).reshape(10, 10)
CONFUSION = [
    {"actual": name} | {column: str(n) for column, n in zip(CLASSES, row, strict=True)}
    for name, row in zip(CLASSES, COUNTS, strict=True)
]


def pixels(axes: Any) -> Any:
    return axes.images[0].get_array()


def images(figure: Figure) -> list[Any]:
    """The image below each title. They are parts of a single one, so that they have one scale."""
    axes, titles = figure.axes[0], figure.axes[0].texts
    assert len(axes.images) == 1
    columns, rows = (len({text.get_position()[i] for text in titles}) for i in (0, 1))
    strips = np.split(pixels(axes), rows)
    cells: list[Any] = [cell for strip in strips for cell in np.split(strip, columns, axis=1)]
    assert all(cell.mask.all() for cell in cells[len(titles) :])
    return [cell[:, ~cell.mask.all(0)][~cell.mask.all(1)] for cell in cells[: len(titles)]]


def titles(figure: Figure) -> list[str]:
    """The titles of the images."""
    return [text.get_text() for text in figure.axes[0].texts]


def heights(line: Any) -> list[float]:
    return list(line.get_ydata())


def test_dollar_signs_are_no_mathematics() -> None:
    figure = figures.curves(HISTORY, figures._literal("$10 to ${x}$"))
    figure.savefig(io.BytesIO())
    with pytest.raises(ValueError, match="x"):  # the control
        figures.curves(HISTORY, "$10 to ${x}$ \\lr$ $\\x$").savefig(io.BytesIO())


@pytest.mark.parametrize("units", [1, 63, 100])
def test_units_are_the_strongest_ones_on_one_scale(units: int) -> None:
    pattern = np.arange(25, dtype=np.float32).reshape(5, 5)
    weights = pattern * np.arange(1, units + 1, dtype=np.float32)[:, None, None]
    figure = figures.units(weights, CLASSES, "A model")
    assert titles(figure) == [f"unit {n}" for n in reversed(range(units))][:64]
    assert np.array_equal(images(figure), weights[::-1][:64])


@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_a_fit_draws_the_lines_of_the_solutions_that_are_known(unknown: int) -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    test = Examples(torch.stack([x, -x], 1), (2 * x + 3 * -x + 1).unsqueeze(1))
    slopes = {"true": 2.0, "analytic": 2.5, "learned": 3.0}
    known = dict([*slopes.items()][unknown:])
    table = [{"parameter": "w1"} | {kind: str(known.get(kind, "")) for kind in slopes}]
    for name, value in (("w2", "3"), ("b", "1")):
        table += [{"parameter": name} | {kind: value if kind in known else "" for kind in slopes}]
    above, _, below, _ = figures.fit(table, test, "A model").axes
    points, *lines = above.lines
    assert heights(points) == [-2, 0, 4]  # the part of y that the first feature explains: 2x
    assert [line.get_label() for line in lines] == [f"{k}: {v:.5f}" for k, v in known.items()]
    assert [heights(line) for line in lines] == [[-slope, 2 * slope] for slope in known.values()]
    # Without true weights, the residuals are those from the least-squares line.
    rest = 3 - next(iter(known.values()))
    assert heights(below.lines[-1]) == [-rest, 2 * rest]
    figure = figures.fit([dict.fromkeys(row, "") for row in table], test, "A model")
    assert not figure.axes and "no linear solution is unique" in figure.get_suptitle()


Draw = Callable[[str, tuple[int, ...], nn.Module], dict[str, Figure]]


class Own(Architecture):
    """An architecture with a figure of its own."""

    def figures(self, weights: Mapping[str, Tensor], title: str) -> dict[str, Figure]:
        return {"own.png": Figure()} if weights else {}


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """A function that draws the figures of a network, in a folder with data and results."""
    p = params.load(ROOT / "tests/params.yaml")
    monkeypatch.chdir(tmp_path)
    p.dataset("linear_regression").prepare(schema.folder("regression_data"), p)
    row = {"parameter": "", "learned": 1.0, "analytic": 1.0, "true": None}
    files.write_csv(Path("results/linear_regression/breakdown.csv"), [row] * 3)
    images = torch.arange(20).byte()[:, None, None].expand(-1, 28, 28).contiguous()
    tensors = {"images": images, "labels": torch.zeros(20).long()}
    files.write_tensors(Path("data/fashion_mnist/test.safetensors"), tensors)
    files.write_csv(Path("results/mlp/breakdown.csv"), CONFUSION)
    for name in ("linear_regression", "mlp"):
        files.write_csv(Path(f"results/{name}/predictions.csv"), PREDICTIONS)

    def draw(name: str, inputs: tuple[int, ...], network: nn.Module) -> dict[str, Figure]:
        model = Model("own", Own(), Shape(inputs=inputs, outputs=10), network)
        return figures.draw(name, p, model, HISTORY)

    return draw


IMAGE = (1, 28, 28)
LAYER = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
CONVOLUTION = nn.Sequential(nn.Conv2d(1, 10, 5), nn.Flatten(), nn.Linear(5760, 10))
UNITS = {f"unit {n}" for n in range(10)}


@pytest.mark.parametrize(
    ("name", "inputs", "network", "size", "labels"),
    [
        ("mlp", IMAGE, LAYER, (28, 28), set(CLASSES)),
        ("mlp", (28, 28), nn.Sequential(*LAYER, nn.Linear(10, 10)), (28, 28), UNITS),
        ("mlp", IMAGE, CONVOLUTION, (5, 5), UNITS),
        ("mlp", (784,), LAYER, None, set()),  # as of data without images
        ("linear_regression", (2,), nn.Linear(2, 1), None, set()),
    ],
)
def test_figures_are_those_of_the_task_and_of_images_their_weights(
    draw: Draw,
    name: str,
    inputs: tuple[int, ...],
    network: nn.Module,
    size: tuple[int, int] | None,
    labels: set[str],
) -> None:
    drawn = draw(name, inputs, network)
    of_task = "confusion.png" if name == "mlp" else "fit.png"
    of_images = {"mistakes.png", "weights.png"} if size else set()
    assert drawn.keys() == {"curves.png", of_task, "own.png"} | of_images
    if size:
        assert set(titles(drawn["weights.png"])) == labels
        assert {image.shape for image in images(drawn["weights.png"])} == {size}


@pytest.mark.parametrize("table", ["breakdown.csv", "predictions.csv"])
def test_a_table_of_something_else_is_refused_in_one_line(draw: Draw, table: str) -> None:
    files.write_csv(Path("results/mlp", table), [{"other": 1}])
    with pytest.raises(InputError, match=f"{table}: expected a table of this pipeline"):
        draw("mlp", IMAGE, CONVOLUTION)


def test_figures_of_a_classification_show_its_history_and_tables(draw: Draw) -> None:
    drawn = draw("mlp", IMAGE, LAYER)
    loss, accuracy, norms = drawn["curves.png"].axes
    assert [line.get_label() for line in norms.lines] == ["hidden 1", "output"]
    assert heights(loss.lines[1]) == [2, 1, 2 / 3]
    assert norms.get_yscale() == "log" and loss.get_yscale() == "linear"
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in (loss, accuracy))

    axes = drawn["confusion.png"].axes[0]
    assert [text.get_text() for text in axes.texts] == [str(n) for n in range(100)]
    assert axes.get_title().endswith(": 495 of 4,950 test examples correct (10.00%)")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert np.allclose(pixels(axes), COUNTS / COUNTS.sum(1, keepdims=True))

    # The most confident mistakes, beside their images; of 20 examples two are right.
    first, *_, last = shown = titles(drawn["mistakes.png"])
    assert len(shown) == 18 and "predicted: " in last and "0.010" in last
    assert first == "no. 19: Ankle boot\npredicted: T-shirt/top\nwith p = 0.190"
    wrong = [n for n in range(19, -1, -1) if n % 10]
    for n, image in zip(wrong, images(drawn["mistakes.png"]), strict=True):
        assert image.shape == (28, 28) and (image == n / 256).all()
