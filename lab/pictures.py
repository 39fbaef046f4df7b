"""The pictures of a run: what a person looks at before trusting a number.

Drawn from the files that the other stages wrote, into the tracking store and never
into a DVC output, as no two releases of a drawing library agree on a pixel.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lab.files import InputError, read_csv, read_rows, read_tensors
from lab.notes import TITLES
from lab.params import CLASSES, FASHION_MNIST, REGRESSION, ModelName

Tensors = Mapping[str, NDArray[Any]]
MISTAKES = (4, 6)  # rows and columns
FILTERS = (8, 8)
FEATURES = 6  # columns of a fit at the most


def draw(
    name: ModelName, folder: Path, history: Sequence[Mapping[str, float]]
) -> dict[str, Figure]:
    """The pictures of one model, by file name, of what lies in its folder of results.

    Raises InputError where a file does not hold what its stage writes.
    """
    title = TITLES[name]
    pictures = {"curves.png": curves(history, title)}
    if name == "linear_regression":
        examples = read_csv(REGRESSION / "test.csv")
        solution = read_rows(folder / "solution.csv")
        return pictures | {
            "fit.png": _drawn(folder / "solution.csv", fit, examples, solution, title)
        }
    table, predictions = read_rows(folder / "confusion.csv"), read_rows(folder / "predictions.csv")
    test, model = FASHION_MNIST / "test.safetensors", folder / "model.safetensors"
    images, _ = read_tensors(test, "np")
    weights, _ = read_tensors(model, "np")
    pictures |= {
        "confusion.png": _drawn(folder / "confusion.csv", confusion, table, title),
        "mistakes.png": _drawn(folder / "predictions.csv", mistakes, images, predictions, title),
    }
    if name == "softmax_regression":
        return pictures | {"templates.png": _drawn(model, templates, weights, title)}
    return pictures | {"filters.png": _drawn(model, filters, weights, title)}


def _drawn(path: Path, picture: Callable[..., Figure], *arguments: Any) -> Figure:
    """The picture, or InputError where the table at `path` lacks what it needs."""
    try:
        return picture(*arguments)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path}: not what this pipeline writes: {error!r}") from error


def curves(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Loss, accuracy where there is one, and gradient norms by layer, over the epochs."""
    epochs = [row["epoch"] for row in history]
    norms = {
        key.removeprefix("gradient_norm_").replace("_", " "): key
        for key in history[0]
        if key.startswith("gradient_norm_")
    }
    both = ("train", "validation")
    panels = [("loss", "mean loss per example", {side: f"{side}_loss" for side in both})]
    if "train_accuracy" in history[0]:
        shares = {side: f"{side}_accuracy" for side in both}
        panels.append(("accuracy", "share of examples classified rightly", shares))
    panels.append(("gradient by layer", "Euclidean norm, mean over steps", norms))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    figure.suptitle(title)
    for axes, (name, unit, columns) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for label, column in columns.items():
            axes.plot(epochs, [row[column] for row in history], marker=".", label=label)
        axes.set(title=name, xlabel="epoch", ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        values = [row[column] for column in columns.values() for row in history]
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion(table: Sequence[Mapping[str, str]], title: str) -> Figure:
    """Which class was taken for which: counts, coloured by the share of the true class."""
    counts = np.array([[int(row[name]) for name in CLASSES] for row in table])
    right, n = int(counts.trace()), int(counts.sum())
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if shares[i, j] > 0.5 else "black" if count else "lightgrey"
        axes.text(j, i, str(count), ha="center", va="center", color=colour)
    axes.set(
        title=f"{title}: {right:,} of {n:,} test images right ({right / n:.2%})",
        xlabel="predicted class", ylabel="true class",
    )  # fmt: skip
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right")
    axes.set_yticks(range(len(CLASSES)), [row["actual"] for row in table])
    figure.colorbar(image, label="share of the true class", format="{x:.0%}")
    return figure


def mistakes(data: Tensors, predictions: Sequence[Mapping[str, str]], title: str) -> Figure:
    """The test images on which the model was wrong and most sure of it.

    Of data, images uint8 (N, 28, 28), of which the N predictions are.
    """
    images = data["images"]
    if len(images) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions of {len(images)} images")
    wrong = [i for i, row in enumerate(predictions) if row["actual"] != row["predicted"]]
    wrong.sort(key=lambda i: -float(predictions[i]["probability"]))
    rows, columns = MISTAKES
    figure = Figure(figsize=(1.9 * columns, 2.5 * rows + 0.5), layout="constrained")
    figure.suptitle(
        f"{title}: the most confident of {len(wrong):,} mistakes on {len(images):,} test images"
    )
    for axes, i in zip(_grid(figure, rows, columns), wrong, strict=False):
        row = predictions[i]
        axes.imshow(images[i], cmap="gray_r")
        axes.set_title(
            f"no. {i}: {row['actual']}\ntaken for {row['predicted']}\n"
            f"with p = {float(row['probability']):.3f}",
            fontsize=8,
        )
    return figure


def templates(model: Tensors, title: str) -> Figure:
    """What softmax regression looks for in each class: output.weight (classes, 784)."""
    weights = model["output.weight"]
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(f"{title}: the weights of each class, one per pixel")
    _weights(
        figure,
        (2, 5),
        weights,
        list(CLASSES),
        "blue: ink there speaks for the class, red: against it",
    )
    return figure


def filters(model: Tensors, title: str) -> Figure:
    """What the units of the first hidden layer look for: hidden_1.weight (units, 784)."""
    weights = model["hidden_1.weight"]
    rows, columns = FILTERS
    strongest = np.argsort(-np.square(weights).sum(1), kind="stable")[: rows * columns]
    rows = -(-len(strongest) // columns)
    figure = Figure(figsize=(1.25 * columns, 1.25 * rows + 0.6), layout="constrained")
    figure.suptitle(
        f"{title}: the {len(strongest)} strongest of {len(weights)} units of the first hidden layer"
    )
    names = [f"unit {i}" for i in strongest]
    _weights(
        figure,
        (rows, columns),
        weights[strongest],
        names,
        "blue: ink there raises the unit, red: lowers it",
    )
    return figure


def _weights(
    figure: Figure, shape: tuple[int, int], weights: NDArray[np.float32], names: Sequence[str],
    meaning: str,
) -> None:  # fmt: skip
    """Rows of 784 weights as images on one scale, which a few extreme ones do not set."""
    limit = float(np.quantile(np.abs(weights), 0.995)) or 1.0
    panels = _grid(figure, *shape)
    for axes, row, name in zip(panels, weights, names, strict=False):
        image = axes.imshow(row.reshape(28, 28), cmap="RdBu", vmin=-limit, vmax=limit)
        axes.set_title(name, fontsize=8)
    figure.colorbar(image, ax=panels, label=f"weight ({meaning})", shrink=0.8, extend="both")


def fit(
    examples: Sequence[Mapping[str, float]], solution: Sequence[Mapping[str, str]], title: str
) -> Figure:
    """Per feature, the part of y that it explains, with the true, analytic and learned line.

    Below, the same less the true line, where the three can be told apart. What the other
    features and the bias explain, by the true parameters, is taken off y.
    """
    *weights, bias = solution
    true = {f"x{i}": float(row["true"]) for i, row in enumerate(weights, start=1)}
    shown = list(zip(true, weights, strict=True))[:FEATURES]
    figure = Figure(figsize=(5 * len(shown), 8), layout="constrained")
    figure.suptitle(f"{title}: {len(examples)} test examples and the lines through them")
    panels = figure.subplots(2, len(shown), squeeze=False)
    rest = np.array([
        example["y"] - float(bias["true"]) - sum(w * example[x] for x, w in true.items())
        for example in examples
    ])  # fmt: skip
    for (above, below), (feature, row) in zip(panels.T, shown, strict=True):
        x = np.array([example[feature] for example in examples])
        above.plot(x, true[feature] * x + rest, ".", color="silver", label="examples")
        below.plot(x, rest, ".", color="silver")
        ends = np.array([x.min(), x.max()])
        for kind, style in (("true", "-"), ("analytic", "--"), ("learned", ":")):
            slope = float(row[kind])
            above.plot(ends, slope * ends, style, label=f"{kind}: {slope:.5f}")
            below.plot(ends, (slope - true[feature]) * ends, style)
        above.set(
            title=f"weight of {feature}", xlabel=feature, ylabel="y less what the rest explains"
        )
        below.set(xlabel=feature, ylabel="the same, less the true line")
        above.legend()
    return figure


def _grid(figure: Figure, rows: int, columns: int) -> list[Any]:
    """Panels for images, without axes."""
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    return panels
