"""Print all recorded experiments as one table, best validation result first.

    make compare                            # or: python -m tools.compare
    python -m tools.compare mlp --markdown  # one model; for a report
    python -m tools.compare --csv           # every figure in a column of its own

Runs that differ in the seed alone are one row: their mean, standard deviation and number.
The test results stand there to be read, never to choose by.
"""

import argparse
import sys
from collections.abc import Sequence

import mlflow
import pandas as pd

from lab import params, repository, tracking
from lab.files import InputError
from lab.params import MODELS, ModelName
from stages import command

MEASURES = ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss")


def main() -> None:
    """Read the store that MLFLOW_TRACKING_URI names, print a table."""
    parser = argparse.ArgumentParser(description="Compare the recorded experiments.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="numbers in columns, for a program")
    form.add_argument("--markdown", action="store_true", help="a table for a report")
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}: expected of {', '.join(MODELS)}")
    runs = recorded(arguments.models or MODELS)
    table = compared(runs)
    if arguments.csv:
        table.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    shown = readable(table)
    # As text: of a fingerprint like 12e4567890 it would make a number.
    print(
        shown.to_markdown(index=False, disable_numparse=True)
        if arguments.markdown
        else shown.to_string(index=False)
    )
    if left_out := len(runs) - len(latest(runs)):
        print(f"\n{left_out} runs that repeat a row's parameters and seed are not counted again.")


def recorded(models: Sequence[ModelName] = MODELS) -> pd.DataFrame:
    """The finished runs, newest first: a row each, with the names of MLflow's search.

    And the columns `model` and `changes`: what was asked otherwise than in the commit
    that is checked out. Raises InputError where nothing is recorded.
    """
    with tracking.one_line_errors("MLflow does not give the runs"):
        client = tracking.connect(create=False)
        names = {each.experiment_id: each.name for each in client.search_experiments()}
        ids = [id_ for id_, name in names.items() if name in models]
        runs = mlflow.search_runs(
            ids, "attributes.status = 'FINISHED'", order_by=["attributes.start_time DESC"]
        ) if ids else pd.DataFrame()  # fmt: skip
    if runs.empty:
        raise InputError("no finished run is recorded: `make repro` or `dvc exp run` records some")
    runs["model"] = runs["experiment_id"].map(names)
    asked = params.parse(repository.committed("HEAD", "params.yaml") or "")
    baselines = {
        model: {f"params.{k}": tracking.plain(v) for k, v in asked.seen_by(model).items()}
        for model in models
    }
    runs["changes"] = [changes(row, baselines[row["model"]]) for _, row in runs.iterrows()]
    return runs


def changes(run: pd.Series, baseline: dict[str, str]) -> str:
    """The run's parameters that are not the baseline's, the seed left out."""
    differing = [
        f"{name.removeprefix('params.')}={run[name]}"
        for name, value in baseline.items()
        if name != "params.seed" and name in run and pd.notna(run[name]) and run[name] != value
    ]
    return " ".join(differing) or "(baseline)"


def latest(runs: pd.DataFrame) -> pd.DataFrame:
    """The newest run of each model, parameters and seed."""
    return runs.drop_duplicates(["model", "changes", "params.seed"])


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per model and parameters, best mean validation result first within each model.

    Accuracy decides where there is one, else the loss.
    """
    # A row has the name of its first run, as later experiments repeat what they leave alone.
    first = runs.groupby(["model", "changes"])["tags.mlflow.runName"].transform("last")
    rows = []
    for (model, asked), group in latest(runs).groupby(["model", "changes"], sort=False):
        row = {"model": model, "differs in": asked, "seeds": len(group)}
        for measure in MEASURES:
            values = group.get(f"metrics.{measure}", pd.Series(dtype=float))
            row |= {measure: values.mean(), f"{measure}_sd": values.std()}
        row["experiment"] = first[group.index[0]]
        row["fingerprint"] = " ".join(group["tags.fingerprint"].str[:10])
        rows.append(row)
    table = pd.DataFrame(rows)
    order = pd.Categorical(table["model"], MODELS)
    return table.assign(order=order).sort_values(
        ["order", "validation_accuracy", "validation_loss"], ascending=[True, False, True]
    ).drop(columns="order").reset_index(drop=True)  # fmt: skip


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with mean ± standard deviation as one text each."""
    shown = table[["model", "differs in", "experiment", "seeds"]].copy()
    for measure in MEASURES:
        form = ".4f" if measure.endswith("accuracy") else ".5g"
        pairs = zip(table[measure], table[f"{measure}_sd"], strict=True)
        shown[measure.replace("_", " ")] = [figure(mean, sd, form) for mean, sd in pairs]
    shown["fingerprint"] = [
        text if count == 1 else f"{count} of them"
        for text, count in zip(table["fingerprint"], table["seeds"], strict=True)
    ]
    return shown


def figure(mean: float, sd: float, form: str) -> str:
    """A number, its deviation where there is one, nothing for no number."""
    if pd.isna(mean):
        return ""
    return f"{mean:{form}}" if pd.isna(sd) else f"{mean:{form}} ± {sd:.2g}"


if __name__ == "__main__":
    command(main)
