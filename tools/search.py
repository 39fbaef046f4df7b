"""Find parameters by the validation set: Optuna proposes, a sweep computes.

Trials are proposed in rounds of a fixed number, seeded, and judged in their order. So they do not
depend on which worker is faster: the same command makes the same trials and finds the same best.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.trial import Trial, TrialState

from lab.common.files import InputError

ROUND = 8  # trials that are proposed together
FACTOR = 3  # with pruning, one in so many goes on, for so many times the epochs
# A parameter's distribution proposes a change for `dvc exp run -S`.
Distribution = Callable[[Trial], str]
# The validation result of each proposal, with so many epochs; None where it failed.
Evaluate = Callable[[Sequence[Sequence[str]], int], list[float | None]]


class Search(NamedTuple):
    """What is searched, and how."""

    distributions: dict[str, Distribution]
    trials: int
    seed: int
    maximize: bool
    epochs: int  # of a whole training
    prune: bool


def distribution(setting: str, values: Callable[[str], list[str]]) -> tuple[str, Distribution]:
    """The parameter and its distribution, of `lr=log(1e-3,1)` and the like.

    `values` expands a list of values as `dvc exp run --queue -S` does. Raises InputError for
    anything else.
    """
    name, _, form = setting.partition("=")
    if name and re.fullmatch(r"choice\(.+\)", form):
        choices = values(setting)
        return name, lambda trial: str(trial.suggest_categorical(name, choices))
    found = re.fullmatch(r"(log|uniform|int)\(([^,]+),([^,]+)\)", form)
    try:
        if not name or not found:
            raise ValueError
        kind, (low, high) = found[1], map(float, found.groups()[1:])
        whole = low.is_integer() and high.is_integer()
        if (
            not -math.inf < low < high < math.inf
            or (kind == "log" and low <= 0)
            or (kind == "int" and not whole)
        ):
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"--search {setting}: expected NAME=log(LOW,HIGH), uniform(LOW,HIGH), int(LOW,HIGH)"
            " or choice(VALUE,VALUE,...)"
        ) from error
    if kind == "int":
        return name, lambda trial: f"{name}={trial.suggest_int(name, int(low), int(high))}"

    def three_digits(trial: Trial) -> str:  # what a person can type
        value = float(f"{trial.suggest_float(name, low, high, log=kind == 'log'):.3g}")
        return f"{name}={min(max(value, low), high):g}"

    return name, three_digits


def search(task: Search, evaluate: Evaluate) -> optuna.Study:
    """A study with the trials. Raises InputError where all failed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rungs = [task.epochs]
    while task.prune and rungs[0] >= FACTOR:
        rungs.insert(0, rungs[0] // FACTOR)
    study = optuna.create_study(
        direction="maximize" if task.maximize else "minimize",
        sampler=optuna.samplers.TPESampler(seed=task.seed % 2**32, n_startup_trials=ROUND),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=rungs[0], reduction_factor=FACTOR
        ),
    )
    for start in range(0, task.trials, ROUND):
        going = {}
        for _ in range(min(ROUND, task.trials - start)):
            trial = study.ask()
            going[trial] = [propose(trial) for propose in task.distributions.values()]
            trial.set_user_attr("changes", going[trial])
        for epochs in rungs:
            if not going:
                break
            values = evaluate(list(going.values()), epochs)
            for trial, value in zip(list(going), values, strict=True):
                trial.set_user_attr("epochs", epochs)
                if value is None:
                    study.tell(trial, state=TrialState.FAIL)
                elif epochs == task.epochs:
                    study.tell(trial, value)
                    continue
                else:
                    trial.report(value, epochs)
                    if not trial.should_prune():
                        continue
                    study.tell(trial, state=TrialState.PRUNED)
                del going[trial]
    if not study.get_trials(states=[TrialState.COMPLETE]):
        raise InputError("no trial was completed")
    return study


def history(study: optuna.Study) -> pd.DataFrame:
    """A row for each trial, in the order in which they were proposed."""
    rows = [
        {
            "trial": trial.number,
            "changes": " ".join(trial.user_attrs["changes"]),
            "state": trial.state.name.lower(),
            "epochs": trial.user_attrs["epochs"],
            "validation": trial.value,
        }
        for trial in study.trials
    ]
    return pd.DataFrame(rows)


def save(study: optuna.Study, folder: Path) -> None:
    """Write the history as a table and a figure into the folder: history.csv and history.png."""
    rows = history(study)
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "history.csv", index=False, lineterminator="\n")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    best = rows["validation"].astype(float)
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
    axes.plot(rows["trial"], best, "o", label="a trial")
    axes.step(
        rows["trial"],
        (best.cummax if maximize else best.cummin)(),
        where="post",
        label="the best so far",
    )
    axes.set(xlabel="trial", ylabel="validation accuracy" if maximize else "validation loss")
    axes.legend()
    figure.savefig(folder / "history.png")
