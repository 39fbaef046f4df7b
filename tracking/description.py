"""What MLflow's page says of a run, in five lines of Markdown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lab import params
from lab.common import files
from lab.schema import Params
from tracking import repository

SHOWN = {"test_accuracy": "accuracy", "test_r2": "R²", "test_loss": "loss"}


def describe(
    name: str,
    p: Params,
    history: Sequence[Mapping[str, float]],
    metrics: Mapping[str, float | None],
    run: str,
) -> str:
    """What the run is, its result beside that of the commit it starts from, how to replay it."""
    origin = repository.dvc_experiment()
    commit = origin.get("DVC_EXP_BASELINE_REV") or repository.head()
    experiment = origin.get("DVC_EXP_NAME")
    before, committed = baseline(name, commit)
    changed = [
        f"{key} = {value} (there: {committed.get(key, 'none')})"
        for key, value in p.flat(name).items()
        if committed and committed.get(key) != value
    ]
    best = best_epoch(history)
    what = f"experiment *{experiment}* on" if experiment else "of"
    lowest = f"lowest validation loss {best['validation_loss']:.5g} in epoch {best['epoch']:.0f}"
    lines = [
        f"**{p.models[name].title}**, {what} commit `{commit[:7]}`",
        f"- **Check it to the last bit:** `make replay RUN={run}`",
        f"- **On the test set:** {_figures(metrics)}"
        + (f" (committed there: {_figures(before)})" if before else ""),
        "- **Parameters that differ from the commit:** "
        + (", ".join(changed) or ("none" if committed else "the commit has no such model")),
        f"- **Trained** for {len(history)} epochs in {p.arithmetic} arithmetic; {lowest}",
    ]
    return "\n".join(lines)


def baseline(name: str, commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's metrics and parameters as committed; empty where there are none, or others."""
    p = committed_params(commit)
    if p is None or name not in p.models:
        return {}, {}
    try:
        metrics = json.loads(repository.committed(commit, f"results/{name}/metrics.json") or "{}")
    except ValueError:
        metrics = {}
    return metrics, p.flat(name)


def committed_params(commit: str) -> Params | None:
    """The parameters of a commit; None where this code cannot read them."""
    try:
        return params.parse(repository.committed(commit, "params.yaml") or "")
    except files.InputError:
        return None


def best_epoch(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The row of the epoch with the lowest validation loss."""
    return min(history, key=lambda row: row["validation_loss"])


def _figures(metrics: Mapping[str, float | None]) -> str:
    values = ((label, metrics.get(key)) for key, label in SHOWN.items())
    return ", ".join(f"{label} {value:.6g}" for label, value in values if value is not None)
