"""Trials depend on the seed and on results alone, and stop early where they are behind."""

from collections.abc import Sequence
from pathlib import Path

import optuna
import pandas as pd
import pytest

from lab.common.files import InputError
from tools import search
from tools.search import Distribution, Search


def values(setting: str) -> list[str]:
    name, _, form = setting.partition("=")
    return [f"{name}={value}" for value in form[len("choice(") : -1].split(",")]


def distributions(*settings: str) -> dict[str, Distribution]:
    return dict(search.distribution(setting, values) for setting in settings)


SETTINGS = ("lr=log(1e-3,1)", "dropout=uniform(0,0.5)", "epochs=int(1,9)", "name=choice(sgd,adam)")


def error(changes: Sequence[str]) -> float:
    """The distance from lr=0.1 and sgd, in a made-up measure."""
    found = dict(change.split("=") for change in changes)
    return abs(float(found["lr"]) - 0.1) + (found["name"] != "sgd")


def study(trials: int = 20, seed: int = 1, **changes: bool) -> tuple[optuna.Study, list[int]]:
    """A study of `error`, and how many trials were run for how many epochs."""
    ran = [0] * 10

    def evaluate(proposed: Sequence[Sequence[str]], epochs: int) -> list[float | None]:
        ran[epochs] += len(proposed)
        return [None if "epochs=9" in changes else error(changes) for changes in proposed]

    settings = {"maximize": False, "prune": False} | changes
    task = Search(distributions(*SETTINGS), trials, seed, epochs=9, **settings)
    return search.search(task, evaluate), ran


def test_the_same_seed_makes_the_same_trials_and_another_seed_others() -> None:
    first, again, other = (search.history(study(seed=seed)[0]) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["changes"].equals(other["changes"])


def test_rounding_stays_within_the_range_and_any_seed_serves() -> None:
    propose = distributions("p=uniform(0.99951,0.9999)")["p"]
    sampler = optuna.samplers.RandomSampler(seed=1)
    trials = optuna.create_study(sampler=sampler)
    found = {float(propose(trials.ask()).removeprefix("p=")) for _ in range(9)}
    assert all(0.99951 <= value <= 0.9999 for value in found)
    assert study(trials=1, seed=2**63 - 1)[0].trials


def test_proposals_lie_within_the_distributions_and_follow_the_results() -> None:
    found, _ = study(trials=40)
    rows = search.history(found)
    for changes in rows["changes"]:
        values = dict(change.split("=") for change in changes.split())
        assert 1e-3 <= float(values["lr"]) <= 1 and 0 <= float(values["dropout"]) <= 0.5
        assert values["epochs"] in list("123456789") and values["name"] in ("sgd", "adam")
    failed = rows["changes"].str.contains("epochs=9")
    assert failed.any() and (rows["state"] == "fail").equals(failed)
    assert found.best_value == rows["validation"].min() < 0.05


def test_with_pruning_few_trials_are_run_for_all_epochs() -> None:
    found, ran = study(trials=24, prune=True)
    assert ran[1] == 24 > ran[3] > ran[9] > 0
    rows = search.history(found)
    assert (rows["state"] == "complete").sum() == ran[9] and (rows["state"] == "pruned").any()
    assert (rows["epochs"] == 9).equals(rows["state"] == "complete")
    _, everything = study(trials=24)
    assert everything[9] == 24 and everything[1] == 0  # the control


def test_the_history_is_saved_as_a_table_and_a_picture(tmp_path: Path) -> None:
    found, _ = study()
    search.save(found, tmp_path / "new")
    assert len(pd.read_csv(tmp_path / "new/history.csv")) == 20
    assert (tmp_path / "new/history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "setting",
    [
        "lr",
        "lr=0.1",
        "=log(1,2)",
        "lr=log(0,1)",
        "lr=log(1)",
        "lr=uniform(1,1)",
        "lr=uniform(2,1)",
        "lr=uniform(a,b)",
        "lr=uniform(nan,1)",
        "lr=uniform(0,inf)",
        "epochs=int(1,2.5)",
        "name=choice()",
        "lr=normal(0,1)",
    ],
)
def test_anything_else_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match="expected NAME=log"):
        search.distribution(setting, values)


def test_a_search_whose_trials_all_fail_says_so() -> None:
    with pytest.raises(InputError, match="no trial was completed"):
        search.search(
            Search(distributions("lr=log(1e-3,1)"), 3, 1, maximize=True, epochs=1, prune=False),
            lambda trials, _: [None] * len(trials),
        )
