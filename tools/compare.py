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
from tracking.description import committed_parameters, differing

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
    if left_out := len(runs) - table["seeds"].sum():
        print(f"\n{left_out} runs that repeat a row's parameters and seed are not counted again.")


def recorded(models: Sequence[str]) -> pd.DataFrame:
    """What `finished` returns. Raises InputError where that is no run."""
    runs = finished(models)
    if runs.empty:
        raise InputError("no finished run is recorded: `make repro` or `dvc exp run` records some")
    return runs


def finished(models: Sequence[str]) -> pd.DataFrame:
    """The finished runs of the models, newest first. Raises InputError where the store fails.

    To MLflow's columns are added `model` and `changes`: the parameters that differ from HEAD's.
    """
    with store.one_line_errors("MLflow does not give the runs"):
        client = store.connect(create=False)
        names = {found.experiment_id: found.name for found in client.search_experiments()}
        ids = [id_ for id_, name in names.items() if name in models]
        # Only this pipeline's runs have a fingerprint; another's may have no parameters.
        finished = "attributes.status = 'FINISHED' AND tags.fingerprint != ''"
        newest = ["attributes.start_time DESC"]
        runs = mlflow.search_runs(ids, finished, order_by=newest) if ids else pd.DataFrame()
    if runs.empty:
        return runs
    runs["model"] = runs["experiment_id"].map(names)
    committed = {model: committed_parameters("HEAD", model) for model in models}
    runs["changes"] = [changes(row, committed[row["model"]]) for _, row in runs.iterrows()]
    return runs


def changes(run: pd.Series, committed: dict[str, str]) -> str:
    """The run's parameters that differ from its model's in the commit, the seed left out.

    All parameters where the commit has no such model.
    """
    values = run.filter(like="params.").dropna().drop("params.seed")
    found = {str(key).removeprefix("params."): value for key, value in values.items()}
    names = differing(found, committed)
    return " ".join(f"{name}={found[name]}" for name in names) or "(baseline)"


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per model and parameters, best validation accuracy, or else loss, first.

    The columns are `model`, `differs in` (from `changes`), `seeds` (their number), `experiment`,
    `fingerprint`, and for MEASURES the mean and the standard deviation (`…_sd`) over the seeds.
    """
    # A row has the name of its first run: a later experiment repeats the models it does not change.
    first = runs.groupby(["model", "changes"])["tags.mlflow.runName"].last()
    columns = runs.columns.union([f"metrics.{measure}" for measure in MEASURES])
    latest = runs.reindex(columns=columns).drop_duplicates(["model", "changes", "params.seed"])
    groups = latest.groupby(["model", "changes"], sort=False)
    table = groups.size().to_frame("seeds").assign(experiment=first)
    for measure in MEASURES:
        values = groups[f"metrics.{measure}"]
        table[[measure, f"{measure}_sd"]] = values.agg(["mean", "std"])
    table["fingerprint"] = groups["tags.fingerprint"].agg(lambda all_: " ".join(all_.str[:10]))
    table = table.reset_index(names=["model", "differs in"])
    table["model"] = pd.Categorical(table["model"], list(params.load().models))
    order = {"model": True, "validation_accuracy": False, "validation_loss": True}
    return table.sort_values(list(order), ascending=list(order.values()), ignore_index=True)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with mean ± standard deviation as one text each."""
    shown = table[["model", "differs in", "experiment", "seeds"]].copy()
    for measure in MEASURES:
        form = ".4f" if measure.endswith("accuracy") else ".5g"
        pairs = zip(table[measure], table[f"{measure}_sd"], strict=True)
        shown[measure.replace("_", " ")] = [
            ("" if pd.isna(mean) else f"{mean:{form}}") + ("" if pd.isna(sd) else f" ± {sd:.2g}")
            for mean, sd in pairs
        ]
    several = table["seeds"].astype(str) + " of them"
    shown["fingerprint"] = table["fingerprint"].where(table["seeds"] == 1, several)
    return shown


if __name__ == "__main__":
    command(main)
