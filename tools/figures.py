"""The figures of docs/book, from the results of `make repro`.

    python -m tools.figures

The same results give the same bytes. Lines and text are of a grey that is readable on white and
on black, as pages have either background.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib import style
from matplotlib.figure import Figure

from lab import networks, schema
from lab.common import files
from lab.datasets import fashion_mnist
from stages import command

FOLDER = Path("docs/book/figures")
GREY = "#808080"
BLUE, ORANGE, GREEN = "#3b8fd6", "#e07b28", "#2f9e5b"
STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), GREY),
    "axes.prop_cycle": f"cycler('color', {[BLUE, ORANGE, GREEN]})",
    "axes.grid": True,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "legend.framealpha": 0,
    "svg.hashsalt": "figures",  # of the names of elements, which else are random
}


def regression_loss() -> Figure:
    """The losses of linear regression by epoch, and the loss of the true weights."""
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    rows = files.read_rows(schema.results("linear_regression") / "history.csv")
    epochs = [int(row["epoch"]) for row in rows]
    for name in ("train", "validation"):
        axes.plot(epochs, [float(row[f"{name}_loss"]) for row in rows], "o-", label=name)
    axes.axhline(0.01**2 / 2, color=GREY, linestyle="--", label="half the variance of the noise")
    axes.set(yscale="log", xlabel="epoch", ylabel="loss", xticks=epochs)
    axes.legend()
    return figure


def temperature() -> Figure:
    """The probabilities of one test image, with all weights and biases times a factor."""
    model = networks.load(schema.results("softmax_regression") / "model.safetensors")
    test = fashion_mnist.FashionMNIST(validation=1).load_test(schema.folder("fashion_mnist"))
    with networks.exactly():
        logits = model.predict(test.features[:100]).double()
    # The image among them with the most even probabilities.
    doubtful = logits[logits.softmax(1).amax(1).argmin()]
    figure = Figure(figsize=(8, 3.2))
    places = np.arange(len(fashion_mnist.CLASSES))
    for axes, factor in zip(figure.subplots(1, 3, sharey=True), (0.1, 1, 10), strict=True):
        axes.bar(places, (factor * doubtful).softmax(0).numpy())
        axes.set(title=f"weights × {factor}", ylim=(0, 1))
        axes.set_xticks(places, fashion_mnist.CLASSES, rotation=90)
        axes.xaxis.grid(visible=False)
    figure.axes[0].set_ylabel("probability")
    return figure


def weights() -> Figure:
    """The weights of softmax regression, one image per class, red below 0 and blue above."""
    model = networks.load(schema.results("softmax_regression") / "model.safetensors")
    images = model.network.get_parameter("output.weight").detach().view(-1, 28, 28).numpy()
    figure, most = Figure(figsize=(8, 3.6)), np.abs(images).max()
    names = fashion_mnist.CLASSES
    for axes, image, name in zip(figure.subplots(2, 5).flat, images, names, strict=True):
        axes.imshow(image, cmap="RdBu", vmin=-most, vmax=most, interpolation="nearest")
        axes.set_title(name)
        axes.axis("off")
    return figure


def confusion() -> Figure:
    """The confusion matrices of both classifiers, without the examples that are right."""
    figure = Figure(figsize=(9, 5))
    for axes, model in zip(figure.subplots(1, 2), ("softmax_regression", "mlp"), strict=True):
        rows = files.read_rows(schema.results(model) / "breakdown.csv")
        names = [row["actual"] for row in rows]
        counts = np.array([[int(row[name]) for name in names] for row in rows])
        wrong = counts * (1 - np.eye(len(names), dtype=int))
        axes.imshow(np.ma.masked_equal(wrong, 0), cmap="Oranges", vmin=-20, vmax=150)
        for i, j in np.argwhere(wrong >= 20):
            color = "black" if wrong[i, j] < 80 else "white"
            axes.text(j, i, str(wrong[i, j]), ha="center", va="center", fontsize=7, color=color)
        axes.set(title=model.replace("_", " "), xlabel="predicted", ylabel="actual")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
    return figure


def activations() -> Figure:
    """ReLU, sigmoid and tanh, and their slopes."""
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    shown = {"ReLU": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
    for name, function in shown.items():
        x = torch.linspace(-4, 4, 161, dtype=torch.float64, requires_grad=True)
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        left.plot(x.detach().numpy(), y.detach().numpy(), label=name)
        right.plot(x.detach().numpy(), slope.numpy(), label=name)
    left.set(title="activation", xlabel="x", ylim=(-1.1, 2))
    right.set(title="slope", xlabel="x")
    left.legend()
    return figure


def accuracies() -> Figure:
    """The accuracies of both classifiers by epoch, in training and validation."""
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    for model, color in (("softmax_regression", BLUE), ("mlp", ORANGE)):
        rows = files.read_rows(schema.results(model) / "history.csv")
        for part, line in (("train", "--"), ("validation", "-")):
            values = [float(row[f"{part}_accuracy"]) for row in rows]
            label = f"{model.replace('_', ' ')}, {part}"
            axes.plot(range(1, len(rows) + 1), values, line, color=color, label=label)
    axes.set(xlabel="epoch", ylabel="accuracy", xticks=range(5, 21, 5))
    axes.legend()
    return figure


FIGURES = (regression_loss, temperature, weights, confusion, activations, accuracies)


def main() -> None:
    """Results in, figures out."""
    argparse.ArgumentParser(description="Draw the figures of docs/book.").parse_args()
    with style.context(STYLE):
        for draw in FIGURES:
            figure = draw()
            with files.atomic(FOLDER / f"{draw.__name__}.svg") as temporary:
                figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    command(main)
