"""One table of all recorded runs: what differs, seeds together, best validation first."""

import io
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from lab import params
from lab.common.files import InputError
from lab.optimizers import Adam
from lab.schema import Params
from tests.conftest import Clone, Program
from tools import compare
from tracking import description, store
from tracking.repository import ROOT

FORMS: tuple[tuple[str, ...], ...] = ((), ("--markdown",), ("--csv",))


@pytest.fixture(autouse=True)
def committed(git: Clone, database: Path) -> Params:
    """The parameters, committed in a repository without runs, which is the current folder."""
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    git.commit("all")
    return params.load()


def record(p: Params, validation: float, test: float, model: str = "mlp", **info: str) -> None:
    """Record a run; `info` may have its name and status."""
    client = store.connect()
    tags = {"fingerprint": f"{validation}{test}".replace(".", "") * 8}
    experiment = store.experiment(client, p, model)
    id_ = client.create_run(experiment, run_name=info.get("name"), tags=tags).info.run_id
    for key, value in description.plain(p.flat(model)).items():
        client.log_param(id_, key, value)
    measure = p.dataset(model).task.measures[0]
    client.log_metric(id_, f"validation_{measure}", validation)
    client.log_metric(id_, f"test_{measure}", test)
    client.set_terminated(id_, info.get("status"))


def test_a_row_is_the_newest_runs_of_all_seeds_and_the_best_validation_is_first(
    committed: Params,
) -> None:
    record(committed, 0.80, 0.95)  # best by the test, which must not count
    for seed, validation, name in ((1, 0.1, "first"), (1, 0.85, "repeated"), (2, 0.89, "another")):
        other = committed.model_copy(update={"seed": seed, "lr": 0.1})
        record(other, validation, 0.7, name=name)
    # The settings of another optimiser are changes where they are not its defaults.
    adam = Adam(name="adam", eps=1e-7)
    mlp = committed.training("mlp").model_copy(update={"hidden": (64,), "optimizer": adam})
    record(committed.model_copy(update={"mlp": mlp}), 0.84, 0.9)
    record(committed, 0.001, 0.002, "linear_regression")
    record(committed, 0.99, 0.99, status="FAILED")
    table = compare.compared(compare.recorded(list(committed.models)))
    assert list(table["model"]) == ["linear_regression", "mlp", "mlp", "mlp"]
    changed = "optimizer=adam hidden=64 optimizer.eps=1e-07"
    assert list(table["differs in"]) == ["(baseline)", "lr=0.1", changed, "(baseline)"]
    assert list(table["seeds"]) == [1, 2, 1, 1]
    assert table["experiment"][1] == "first"  # an experiment repeats what it leaves alone
    shown = compare.readable(table)
    assert list(shown["validation accuracy"]) == ["", "0.8700 ± 0.028", "0.8400", "0.8000"]
    assert shown["validation loss"][0] == "0.001"
    assert shown["fingerprint"][1] == "2 of them"


def test_runs_of_a_model_that_is_not_committed_are_told_apart(committed: Params) -> None:
    for lr, validation in ((0.03, 0.83), (0.1, 0.9)):
        record(committed.model_copy(update={"lr": lr}), validation, 0.7)
    Path("params.yaml").rename("other.yaml")
    Clone(Path.cwd(), Path()).commit("no parameters")
    Path("other.yaml").rename("params.yaml")
    table = compare.compared(compare.recorded(["mlp"]))
    assert list(table["validation_accuracy"]) == [0.9, 0.83]
    assert [re.findall(r"\blr=\S+", row) for row in table["differs in"]] == [
        ["lr=0.1"],
        ["lr=0.03"],
    ]


def test_runs_that_another_program_recorded_are_left_out(committed: Params) -> None:
    record(committed, 0.8, 0.7)
    client = store.connect()
    run = client.create_run(store.experiment(client, committed, "mlp")).info.run_id
    client.log_metric(run, "validation_accuracy", 0.99)
    client.set_terminated(run)
    assert list(compare.compared(compare.recorded(["mlp"]))["validation_accuracy"]) == [0.8]


def test_it_prints_text_markdown_or_csv(committed: Params, in_process: Program) -> None:
    for validation in (0.7, 0.8):
        record(committed, validation, 0.75)
    printed = {form: in_process(compare, "mlp", *form).stdout for form in FORMS}
    (row,) = pd.read_csv(io.StringIO(printed["--csv",])).to_dict("records")
    assert (row["model"], row["validation_accuracy"], row["seeds"]) == ("mlp", 0.8, 1)
    for form in ((), ("--markdown",)):
        assert all(text in printed[form] for text in ("0.8000", "0.7500", "(baseline)", "repeat"))
    assert [form for form in FORMS if printed[form].count("|") > 20] == [("--markdown",)]


def test_what_is_not_there_is_one_line(database: Path, in_process: Program) -> None:
    done = in_process(compare, "perceptron")
    assert done.returncode == 2
    assert "no model perceptron: expected of linear_regression" in done.stderr
    with pytest.raises(InputError, match="no finished run is recorded"):
        compare.recorded(["mlp"])
    database.unlink()
    with pytest.raises(InputError, match="`make repro` records some"):
        compare.recorded(["mlp"])
