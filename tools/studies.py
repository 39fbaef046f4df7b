"""The tables and figures of docs/studies.md, from the recorded runs.

python -m tools.studies                 # print the tables of the first two studies
python -m tools.studies --write         # put them into docs/studies.md, the figures beside it
python -m tools.studies --ingredients   # the same for the third study, which takes hours to run
"""

import argparse
from pathlib import Path

import mlflow
import pandas as pd
from matplotlib.figure import Figure

from lab import params
from lab.common import files
from lab.common.files import InputError
from lab.networks import NORM
from stages import command
from tools import compare
from tools.results import write_between
from tracking import store

PAGE = Path("docs/studies.md")
DEEP = "hidden=128,128,128,128"
SEEDS = 5  # at least, of each row of the third study
# What each row of the third study adds to the one above it.
INGREDIENTS = {
    "the committed parameters": {},
    "80 epochs": {"epochs": "80"},
    "shifts by one pixel": {"shift": "1"},
    "label smoothing": {"label_smoothing": "0.1"},
    "averaged weights": {"weight_averaging": "0.998"},
    "1024 and 512 hidden units": {"hidden": "1024,512"},
}


def main() -> None:
    """Runs in; tables and figures out."""
    parser = argparse.ArgumentParser(description="Make tables and figures of recorded runs.")
    parser.add_argument("--ingredients", action="store_true", help="those of the third study")
    parser.add_argument("--write", action="store_true", help="into the page, instead of printing")
    arguments = parser.parse_args()
    models, write = params.load().models, arguments.write
    runs = compare.recorded(list(models))
    if arguments.ingredients:
        table = ingredient_table(runs)
        write_between(PAGE, "ingredients", table) if write else print(table)
        return
    client = store.connect(create=False)
    activations = chosen(runs, "mlp", "activation", {DEEP})
    rates = {entry.title: chosen(runs, model, "lr", set()) for model, entry in models.items()}
    tables = {"activation": activation_table(activations), "lr": rate_table(rates)}
    if not write:
        print("\n".join(tables.values()))
        return
    for name, table in tables.items():
        write_between(PAGE, name, table)
    save(activation_figure(client, activations), "activation")
    save(rate_figure(rates), "lr")


def chosen(runs: pd.DataFrame, model: str, varied: str, fixed: set[str]) -> pd.DataFrame:
    """The newest run for each value of one parameter; the others are the commit's and `fixed`.

    Raises InputError where there are not two.
    """

    def others(changes: str) -> set[str]:
        differing = set(changes.split()) - {"(baseline)"}
        return {change for change in differing if not change.startswith(f"{varied}=")}

    fitting = runs[(runs["model"] == model) & (runs["changes"].map(others) == fixed)]
    newest = fitting.drop_duplicates([f"params.{varied}"])
    if len(newest) < 2:
        raise InputError(
            f"{model}: fewer than two values of {varied} are recorded:"
            f" first run the line of {PAGE} that varies it"
        )
    return newest.set_index(f"params.{varied}")


def activation_table(runs: pd.DataFrame) -> str:
    """Results by activation, and how the gradient thins out on its way to the first layer."""
    columns = {
        "validation accuracy": "validation_accuracy",
        "test accuracy": "test_accuracy",
        "gradient norm, hidden 1": f"{NORM}hidden_1",
        "gradient norm, output": f"{NORM}output",
    }
    best = runs.sort_values("metrics.validation_accuracy", ascending=False)
    table = best[[f"metrics.{name}" for name in columns.values()]].map("{:.4f}".format)
    return markdown(table.set_axis(list(columns), axis=1).rename_axis("activation"))


def ingredient_table(runs: pd.DataFrame) -> str:
    """Accuracies of the perceptron with one ingredient more in each row, over the seeds.

    Raises InputError for a row of fewer than five seeds.
    """
    rows, changes = [], dict[str, str]()
    for name, added in INGREDIENTS.items():
        changes |= added
        wanted = {f"{key}={value}" for key, value in changes.items()} or {"(baseline)"}
        fitting = runs[
            (runs["model"] == "mlp") & (runs["changes"].map(str.split).map(set) == wanted)
        ]
        seeds = fitting.drop_duplicates(["params.seed"])
        if len(seeds) < SEEDS:
            raise InputError(
                f"{name}: fewer than {SEEDS} seeds are recorded: run its line of {PAGE}"
            )
        row = {"added": name, "seeds": str(len(seeds))}
        for part in ("validation", "test"):
            values = seeds[f"metrics.{part}_accuracy"]
            row[f"{part} accuracy"] = f"{values.mean():.4f} ± {values.std():.4f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows).set_index("added"))


def rate_table(runs: dict[str, pd.DataFrame]) -> str:
    """Validation loss or accuracy by learning rate, with a column for each title of a model."""
    columns = {}
    for model, found in runs.items():
        measure, form = ("accuracy", "{:.4f}") if classifies(found) else ("loss", "{:.3g}")
        values = found[f"metrics.validation_{measure}"].map(form.format)
        columns[f"{model}, validation {measure}"] = values
    table = pd.DataFrame(columns).fillna("").rename_axis("lr")
    return markdown(table.sort_index(key=lambda rates: rates.astype(float)))


def classifies(runs: pd.DataFrame) -> bool:
    """Whether the runs have an accuracy."""
    return bool(runs.get("metrics.validation_accuracy", pd.Series(dtype=float)).notna().any())


def markdown(table: pd.DataFrame) -> str:
    """A table of texts, with its index as the first column."""
    return str(table.reset_index().to_markdown(index=False, disable_numparse=True)) + "\n"


def activation_figure(client: mlflow.MlflowClient, runs: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch, and the gradient norm by layer in the first epoch."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    layers = [*(f"hidden_{i}" for i in range(1, DEEP.count(",") + 2)), "output"]
    for activation, found in runs.sort_index().iterrows():
        history = client.get_metric_history(found["run_id"], "validation_accuracy")
        left.plot([m.step for m in history], [m.value for m in history], ".-", label=activation)
        norms = [
            client.get_metric_history(found["run_id"], f"{NORM}{layer}")[0].value
            for layer in layers
        ]
        right.plot([layer.replace("_", " ") for layer in layers], norms, "o-", label=activation)
    left.set(title="validation accuracy", xlabel="epoch", ylabel="accuracy")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(title="gradient by layer in the first epoch", ylabel="Euclidean norm", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def rate_figure(runs: dict[str, pd.DataFrame]) -> Figure:
    """The validation loss of each model over the learning rate."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (model, found) in zip(figure.subplots(1, len(runs)), runs.items(), strict=True):
        losses = found["metrics.validation_loss"].rename(float).sort_index()
        axes.plot(losses.index, losses, "o-")
        axes.set(title=model, xlabel="learning rate", ylabel="validation loss")
        axes.set(xscale="log", yscale="linear" if classifies(found) else "log")
        axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, name: str) -> None:
    """Write the figure beside the page."""
    with files.atomic(PAGE.with_name(f"{name}.png")) as temporary:
        figure.savefig(temporary, format="png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    command(main)
