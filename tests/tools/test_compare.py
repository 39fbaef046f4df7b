"""One table of all recorded runs: what differs, seeds together, best validation first."""

import io
import shutil
from pathlib import Path

import pandas as pd
import pytest

from lab import params, repository, tracking
from lab.files import InputError
from lab.params import Params
from tests.conftest import Program
from tools import compare

FORMS: tuple[tuple[str, ...], ...] = ((), ("--markdown",), ("--csv",))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place of a store that does not exist."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path / "mlflow.db"


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch, store: Path, empty_store: Path) -> Params:
    """The committed parameters, beside an empty store."""
    shutil.copy(empty_store, store)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    monkeypatch.setattr(repository, "committed", lambda commit, path: text)
    return params.parse(text)


def record(
    p: Params, validation: float, test: float, model: params.ModelName = "mlp", name: str = "run",
    status: str = "FINISHED",
) -> None:  # fmt: skip
    client = tracking.connect()
    tags = {"fingerprint": f"{validation}{test}".replace(".", "") * 8}
    run = client.create_run(tracking.experiment(client, model), run_name=name, tags=tags)
    for key, value in p.seen_by(model).items():
        client.log_param(run.info.run_id, key, tracking.plain(value))
    measure = "loss" if model == "linear_regression" else "accuracy"
    client.log_metric(run.info.run_id, f"validation_{measure}", validation)
    client.log_metric(run.info.run_id, f"test_{measure}", test)
    client.set_terminated(run.info.run_id, status)


def changed(p: Params, **changes: object) -> Params:
    return p.model_copy(update=changes)


def test_seeds_are_one_row_with_mean_and_deviation_and_the_best_validation_is_first(
    committed: Params,
) -> None:
    record(committed, 0.80, 0.95)  # best by the test, which must not count
    for seed, validation in ((1, 0.85), (2, 0.89)):
        record(changed(committed, seed=seed, lr=0.1), validation, 0.7, name="faster")
    record(changed(committed, mlp=changed(committed.mlp, hidden=(64,))), 0.84, 0.9)  # type: ignore[arg-type]
    record(committed, 0.001, 0.002, "linear_regression")
    record(committed, 0.99, 0.99, status="FAILED")
    table = compare.compared(compare.recorded())
    assert list(table["model"]) == ["linear_regression", "mlp", "mlp", "mlp"]
    assert list(table["differs in"]) == ["(baseline)", "lr=0.1", "hidden=64", "(baseline)"]
    assert list(table["seeds"]) == [1, 2, 1, 1]
    shown = compare.readable(table)
    assert list(shown["validation accuracy"]) == ["", "0.8700 ± 0.028", "0.8400", "0.8000"]
    assert shown["validation loss"][0] == "0.001"
    assert shown["fingerprint"][1] == "2 of them"


def test_a_repeated_run_counts_once_and_the_newest_stands(committed: Params) -> None:
    for name, validation in (("first", 0.7), ("again", 0.8)):
        record(committed, validation, validation, name=name)
    runs = compare.recorded()
    assert len(runs) == 2 and len(compare.latest(runs)) == 1
    table = compare.compared(runs)
    assert table["validation_accuracy"].tolist() == [0.8]
    assert table["experiment"].tolist() == ["first"]  # an experiment repeats what it leaves alone


def test_it_prints_text_markdown_or_csv(committed: Params, in_process: Program) -> None:
    record(committed, 0.8, 0.75)
    printed = {form: in_process(compare, "mlp", *form).stdout for form in FORMS}
    (row,) = pd.read_csv(io.StringIO(printed["--csv",])).to_dict("records")
    assert (row["model"], row["validation_accuracy"], row["seeds"]) == ("mlp", 0.8, 1)
    for form in ((), ("--markdown",)):
        assert all(figure in printed[form] for figure in ("0.8000", "0.7500", "(baseline)"))
    assert [form for form in FORMS if printed[form].count("|") > 20] == [("--markdown",)]


def test_without_runs_it_says_how_to_make_some(store: Path, empty_store: Path) -> None:
    with pytest.raises(InputError, match="`make repro` records some"):
        compare.recorded()
    shutil.copy(empty_store, store)
    with pytest.raises(InputError, match="no finished run is recorded"):
        compare.recorded()


def test_a_model_that_does_not_exist_is_one_line(in_process: Program) -> None:
    done = in_process(compare, "perceptron")
    assert done.returncode == 2
    assert "no model perceptron: expected of linear_regression" in done.stderr
