"""What MLflow's page says of a run, in five lines of Markdown."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lab import params
from lab.common import files
from lab.common.settings import flattened
from lab.optimizers import Training
from lab.schema import Params
from tracking import repository

SHOWN = {"test_accuracy": "accuracy {:.4f}", "test_r2": "R² {:.6f}", "test_loss": "loss {:.5f}"}


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
    committed = committed_parameters(commit, name)
    before: dict[str, float | None] = {}
    with contextlib.suppress(ValueError):  # the commit has no results
        before = json.loads(repository.committed(commit, f"results/{name}/metrics.json") or "")
    found = plain(p.flat(name))
    changed = [
        f"{key} = {found[key]} (there: {committed.get(key, 'none')})"
        for key in differing(found, committed)
    ]
    best = best_epoch(history)
    what = f"experiment *{experiment}* on" if experiment else "of"
    lowest = f"lowest validation loss {best['validation_loss']:.5g} in epoch {best['epoch']:.0f}"
    lines = [
        f"**{p.models[name].title}**, {what} commit `{commit[:7]}`",
        f"- **Check it to the last bit:** `make replay RUN={run}`",
        f"- **On the test set:** {figures(metrics)}"
        + (f" (committed there: {figures(before)})" if before and committed else ""),
        "- **Parameters that differ from the commit:** "
        + ((", ".join(changed) or "none") if committed else "the commit has no such model"),
        f"- **Trained** for {len(history)} epochs in {p.arithmetic} arithmetic; {lowest}",
    ]
    return "\n".join(lines)


def plain(settings: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow keeps them.

    A list of one number is that number, so that runs can be sorted and plotted by it.
    """
    return {
        key: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for key, value in settings.items()
    }


def committed_parameters(commit: str, model: str) -> dict[str, str]:
    """The model's parameters in a commit; empty where it has none that this code can read."""
    try:
        p = params.parse(repository.committed(commit, "params.yaml") or "")
    except files.InputError:
        return {}
    return plain(p.flat(model)) if model in p.models else {}


def differing(found: Mapping[str, str], committed: Mapping[str, str]) -> list[str]:
    """The names of the parameters that differ from the commit's, in the commit's order.

    The settings of another optimiser or schedule than the commit's are compared with its defaults.
    """
    expected = dict(committed)
    for choice in ("optimizer", "lr_schedule"):
        if found.get(choice) != committed.get(choice):
            expected |= _defaults(choice, found.get(choice))
    names = [*committed, *sorted(found.keys() - committed.keys())]
    return [name for name in names if name in found and found[name] != expected.get(name)]


def _defaults(choice: str, name: str | None) -> dict[str, str]:
    """The default settings of an optimiser or schedule, and nothing for one of other code."""
    names = {"optimizer": "sgd", "lr_schedule": "constant"} | {choice: name}
    try:
        settings = Training.model_validate({"epochs": 1, "batch_size": 1} | names)
    except ValidationError:
        return {}
    return {k: v for k, v in plain(flattened(settings)).items() if k.startswith(f"{choice}.")}


def best_epoch(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The row of the epoch with the lowest validation loss."""
    return min(history, key=lambda row: row["validation_loss"])


def figures(metrics: Mapping[str, float | None]) -> str:
    """The results on the test set, without those that are undefined."""
    known = {key: value for key, value in metrics.items() if value is not None}
    return ", ".join(text.format(known[key]) for key, text in SHOWN.items() if key in known)
