"""Print all recorded experiments as one table, best validation result first.

    make compare                            # or: python -m tools.compare
    python -m tools.compare mlp --markdown  # one model; for a report
    python -m tools.compare --csv           # every figure in a column of its own

Runs that differ only in the seed are one row: their mean, standard deviation and number.
Test results are shown for information: choose by the validation results.
"""

import argparse
import sys
from collections.abc import Sequence

import mlflow
import pandas as pd

from lab import params
from lab.common.files import InputError
from stages import command
from tracking import store
from tracking.description import committed_params
from tracking.run import plain

MEASURES = ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss")


def main() -> None:
    """Read the store that MLFLOW_TRACKING_URI names, print a table."""
    parser = argparse.ArgumentParser(description="Compare the recorded experiments.")
    known = list(params.load().models)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)}")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="numbers in columns, for a program")
    form.add_argument("--markdown", action="store_true", help="a table for a report")
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(known):
        parser.error(f"no model {', '.join(sorted(unknown))}: expected of {', '.join(known)}")
    runs = recorded(arguments.models or known)
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


def recorded(models: Sequence[str]) -> pd.DataFrame:
    """The finished runs of the models, newest first: a row each, with the names of MLflow's search.

    The columns `model` and `changes` are added: `changes` has the parameters that differ from the
    commit that is checked out. Raises InputError where nothing is recorded.
    """
    with store.one_line_errors("MLflow does not give the runs"):
        client = store.connect(create=False)
        names = {found.experiment_id: found.name for found in client.search_experiments()}
        ids = [id_ for id_, name in names.items() if name in models]
        finished, newest = "attributes.status = 'FINISHED'", ["attributes.start_time DESC"]
        runs = mlflow.search_runs(ids, finished, order_by=newest) if ids else pd.DataFrame()
    if runs.empty:
        raise InputError("no finished run is recorded: `make repro` or `dvc exp run` records some")
    runs["model"] = runs["experiment_id"].map(names)
    baselines = {}
    if committed := committed_params("HEAD"):
        for model in committed.models:
            flat = committed.flat(model).items()
            baselines[model] = {f"params.{key}": plain(value) for key, value in flat}
    runs["changes"] = [changes(row, baselines.get(row["model"], {})) for _, row in runs.iterrows()]
    return runs


def changes(run: pd.Series, baseline: dict[str, str]) -> str:
    """The run's parameters that are not the baseline's, the seed left out."""
    if not baseline:
        return "(not in the commit)"
    names = [*baseline, *sorted(name for name in run.index if name not in baseline)]
    differing = [
        f"{name.removeprefix('params.')}={run[name]}"
        for name in names
        if name.startswith("params.") and name != "params.seed" and name in run
        if pd.notna(run[name]) and run[name] != baseline.get(name)
    ]
    return " ".join(differing) or "(baseline)"


def latest(runs: pd.DataFrame) -> pd.DataFrame:
    """The newest run of each model, parameters and seed."""
    return runs.drop_duplicates(["model", "changes", "params.seed"])


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per model and parameters, best mean validation result first within each model.

    Accuracy decides where there is one, else the loss.
    """
    # A row has the name of its first run: a later experiment repeats the models it does not change.
    first = runs.groupby(["model", "changes"])["tags.mlflow.runName"].transform("last")
    rows = []
    for (model, changed), group in latest(runs).groupby(["model", "changes"], sort=False):
        row = {"model": model, "differs in": changed, "seeds": len(group)}
        for measure in MEASURES:
            values = group.get(f"metrics.{measure}", pd.Series(dtype=float))
            row |= {measure: values.mean(), f"{measure}_sd": values.std()}
        row["experiment"] = first[group.index[0]]
        row["fingerprint"] = " ".join(group["tags.fingerprint"].str[:10])
        rows.append(row)
    table = pd.DataFrame(rows)
    table = table.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True])
    order = {model: number for number, model in enumerate(params.load().models)}
    key = table["model"].map(lambda model: order.get(model, len(order)))
    return table.iloc[key.argsort(kind="stable")].reset_index(drop=True)


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
