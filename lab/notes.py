"""What MLflow's page says of a run, in five lines of Markdown."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lab import params, repository
from lab.params import ModelName, Params

TITLES: dict[ModelName, str] = {
    "linear_regression": "Linear regression",
    "softmax_regression": "Softmax regression",
    "mlp": "Multilayer perceptron",
}
SHOWN = {"test_accuracy": "accuracy", "test_r2": "R²", "test_loss": "loss"}


def describe(
    name: ModelName,
    p: Params,
    history: Sequence[Mapping[str, float]],
    metrics: Mapping[str, float | None],
    run: str,
) -> str:
    """What the run is, its result beside that of the commit it starts from, how to replay it."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or repository.head()
    experiment = os.environ.get("DVC_EXP_NAME")
    before, asked = baseline(name, commit)
    changed = [
        f"{key} = {value} (there: {asked.get(key, 'none')})"
        for key, value in p.seen_by(name).items()
        if asked and asked.get(key) != value
    ]
    best = min(history, key=lambda row: row["validation_loss"])
    what = f"experiment *{experiment}* on" if experiment else "of"
    lowest = f"lowest validation loss {best['validation_loss']:.5g} in epoch {best['epoch']:.0f}"
    lines = [
        f"**{TITLES[name]}**, {what} commit `{commit[:7]}`",
        f"- **Check it to the last bit:** `make replay RUN={run}`",
        f"- **On the test set:** {_figures(metrics)}"
        + (f" (committed there: {_figures(before)})" if before else ""),
        f"- **Asked otherwise than in the commit:** {', '.join(changed) or 'nothing'}",
        f"- **Trained** for {len(history)} epochs in {p.arithmetic} arithmetic; {lowest}",
    ]
    return "\n".join(lines)


def baseline(name: ModelName, commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's metrics and parameters as committed; empty where there are none, or others."""
    try:
        metrics = json.loads(repository.committed(commit, f"results/{name}/metrics.json") or "{}")
        asked = params.parse(repository.committed(commit, "params.yaml") or "").seen_by(name)
    except (ValueError, params.ParamsError):
        return {}, {}
    return metrics, asked


def _figures(metrics: Mapping[str, float | None]) -> str:
    values = ((label, metrics.get(key)) for key, label in SHOWN.items())
    return ", ".join(f"{label} {value:.6g}" for label, value in values if value is not None)
