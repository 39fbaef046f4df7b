"""The figures of a run: what a person looks at before trusting a number.

They are no DVC output, as no two releases of a drawing library agree on a pixel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lab import schema
from lab.common.files import read_rows, reading
from lab.datasets import Examples
from lab.networks import NORM, Model, layers
from lab.schema import Params
from lab.tasks import Classification

Rows = Sequence[Mapping[str, str]]
MISTAKES = (4, 6)  # rows and columns
UNITS = (8, 8)
FEATURES = 6  # columns of a fit at the most


def draw(
    name: str, params: Params, model: Model, history: Sequence[Mapping[str, float]]
) -> dict[str, Figure]:
    """The figures, by file name. Raises InputError for a table that no stage writes."""
    entry, task = params.models[name], params.dataset(name).task
    test = params.dataset(name).load_test(schema.folder(entry.data))
    title, image = _literal(entry.title), _image_size(model.shape.inputs)
    figures = {"curves.png": curves(history, title)}
    path = schema.results(name) / "breakdown.csv"
    with reading(path, "a table of this pipeline", LookupError, TypeError):
        if isinstance(task, Classification):
            figures["confusion.png"] = confusion(read_rows(path), task.classes, title)
        else:
            figures["fit.png"] = fit(read_rows(path), test, title)
    path = schema.results(name) / "predictions.csv"
    with reading(path, "a table of this pipeline", LookupError):
        if image and isinstance(task, Classification):
            images = test.features.reshape(-1, *image).numpy()
            figures["mistakes.png"] = mistakes(read_rows(path), images, title)
    weights = first_weights(model)
    if weights is not None:
        single = len(layers(model.network)) == 1  # else the units of the first layer are no classes
        names = task.classes if single and isinstance(task, Classification) else ()
        figures["weights.png"] = units(weights, names, title)
    return figures | model.architecture.figures(model.network.state_dict(), title)


def _literal(text: str) -> str:
    """The text with dollar signs that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _image_size(inputs: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of examples that are grey images, (H, W) or (1, H, W)."""
    match inputs:
        case (height, width) | (1, height, width):
            return height, width
    return None


def first_weights(model: Model) -> NDArray[np.float32] | None:
    """The weights of the first layer as images (units, H, W); None where it sees no images."""
    first = next(iter(layers(model.network).values()))
    weights = next(iter(first.parameters())).detach()
    image = _image_size(model.shape.inputs)
    if weights.dim() == 4 and weights.shape[1] == 1:
        image = (weights.shape[2], weights.shape[3])
    if image and weights[0].numel() == math.prod(image):
        return np.asarray(weights.reshape(-1, *image).numpy())
    return None


def curves(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Loss, accuracy where there is one, and gradient norms by layer, over the epochs."""
    epochs = [row["epoch"] for row in history]
    norms = {
        key.removeprefix(NORM).replace("_", " "): key for key in history[0] if key.startswith(NORM)
    }
    panels = [
        (measure, unit, {part: f"{part}_{measure}" for part in ("train", "validation")})
        for measure, unit in (("loss", "mean loss per example"), ("accuracy", "accuracy"))
        if f"train_{measure}" in history[0]
    ]
    panels.append(("gradient by layer", "Euclidean norm, mean over steps", norms))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    figure.suptitle(title)
    all_axes = figure.subplots(1, len(panels))
    for axes, (name, unit, columns) in zip(all_axes, panels, strict=True):
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


def confusion(table: Rows, classes: Sequence[str], title: str) -> Figure:
    """The confusion matrix: counts, coloured by the share of the true class."""
    counts = np.array([[int(row[name]) for name in classes] for row in table])
    right, n = int(counts.trace()), int(counts.sum())
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if shares[i, j] > 0.5 else "black" if count else "lightgrey"
        axes.text(j, i, str(count), ha="center", va="center", color=colour)
    axes.set(
        title=f"{title}: {right:,} of {n:,} test examples correct ({right / n:.2%})",
        xlabel="predicted class",
        ylabel="true class",
    )
    labels = [_literal(name) for name in classes]
    axes.set_xticks(range(len(classes)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), labels)
    figure.colorbar(image, label="share of the true class", format="{x:.0%}")
    return figure


def mistakes(predictions: Rows, images: NDArray[Any], title: str) -> Figure:
    """The most confident mistakes on the test images (N, H, W), in the order of `predictions`."""
    if len(images) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions of {len(images)} images")
    wrong = [i for i, row in enumerate(predictions) if row["actual"] != row["predicted"]]
    wrong.sort(key=lambda i: -float(predictions[i]["probability"]))
    rows, columns = MISTAKES
    figure = Figure(figsize=(1.9 * columns, 2.4 * rows + 0.4), layout="constrained")
    figure.suptitle(
        f"{title}: the most confident of {len(wrong):,} mistakes on {len(images):,} test images"
    )
    wrong = wrong[: rows * columns]
    labels = [
        f"no. {i}: {predictions[i]['actual']}\npredicted: {predictions[i]['predicted']}\n"
        f"with p = {float(predictions[i]['probability']):.3f}"
        for i in wrong
    ]
    _show_images(figure, images[wrong], labels, columns, cmap="gray_r")
    return figure


def units(weights: NDArray[np.float32], names: Sequence[str], title: str) -> Figure:
    """The weights (units, H, W) of the first layer's strongest units, as images on one scale."""
    rows, columns = UNITS
    if len(names) == len(weights):  # a unit for each class
        shown, labels = np.arange(len(weights)), list(names)
    else:
        strength = np.square(weights).sum((1, 2))
        shown = np.argsort(-strength, kind="stable")[: rows * columns]
        labels = [f"unit {i}" for i in shown]
    columns = min(columns, math.ceil(math.sqrt(2 * len(shown))))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.5 * columns + 1.5, 1.5 * rows + 0.6), layout="constrained")
    figure.suptitle(f"{title}: weights of {len(shown)} of {len(weights)} units of the first layer")
    limit = float(np.quantile(np.abs(weights), 0.995)) or 1.0  # a few extreme weights do not set it
    options = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
    axes = _show_images(figure, weights[shown], labels, columns, **options)
    meaning = "weight: with blue, a bright pixel\nraises the unit, with red it lowers it"
    figure.colorbar(axes.images[0], ax=axes, label=meaning, shrink=0.8, extend="both")
    return figure


def fit(table: Rows, test: Examples, title: str) -> Figure:
    """For each feature, y less what the other terms explain, with the lines of all solutions.

    Lower row: residuals from the true line, or from the first that is known.
    """
    *weights, bias = table
    figure = Figure(figsize=(5 * min(len(weights), FEATURES), 8), layout="constrained")
    figure.suptitle(f"{title}: {len(test.targets)} test examples and the lines through them")
    known = [kind for kind in ("true", "analytic", "learned") if bias[kind]]
    if not known:
        figure.suptitle(f"{title}: no linear solution is unique")
        return figure
    reference = known[0]
    features, y = test.features.flatten(1).double().numpy(), test.targets[:, 0].double().numpy()
    slopes = np.array([float(row[reference]) for row in weights])
    residuals = y - float(bias[reference]) - features @ slopes
    panels = figure.subplots(2, min(len(weights), FEATURES), squeeze=False)
    for i, (above, below) in enumerate(panels.T):
        x, row = features[:, i], weights[i]
        above.plot(x, slopes[i] * x + residuals, ".", color="silver", label="examples")
        below.plot(x, residuals, ".", color="silver")
        ends = np.array([x.min(), x.max()])
        for kind, style in zip(known, ("-", "--", ":"), strict=False):
            slope = float(row[kind])
            above.plot(ends, slope * ends, style, label=f"{kind}: {slope:.5f}")
            below.plot(ends, (slope - slopes[i]) * ends, style)
        above.set(title=row["parameter"], ylabel="y minus the other terms")
        below.set(xlabel=f"feature {i + 1}", ylabel=f"residuals from the {reference} line")
        above.legend()
    return figure


def _show_images(
    figure: Figure, images: NDArray[Any], labels: Sequence[str], columns: int, **options: Any
) -> Axes:
    """Images (N, H, W) row by row on one scale, each below its label."""
    height, width = images.shape[1:]
    lines = 1 + max((label.count("\n") for label in labels), default=0)
    step_x, step_y = math.ceil(1.15 * width), math.ceil((1.15 + 0.1 * lines) * height)
    shape = math.ceil(len(images) / columns) * step_y, columns * step_x
    canvas = np.full(shape, np.nan)  # one image, as many are slow to draw; NaN is not drawn
    axes = figure.subplots()
    axes.set_axis_off()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, bottom = number % columns * step_x, (number // columns + 1) * step_y
        canvas[bottom - height : bottom, left : left + width] = image
        at = (left + width / 2, bottom - 1.05 * height)
        axes.text(*at, _literal(label), fontsize=8, ha="center", va="bottom")
    axes.imshow(canvas, extent=(0, shape[1], shape[0], 0), **options)
    return axes
