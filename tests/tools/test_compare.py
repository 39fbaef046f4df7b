"""One table of all recorded runs: what differs, seeds together, best validation first."""

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lab import params, repository, tracking
from lab.files import InputError
from lab.params import Params
from tools import compare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Params:
    """The committed parameters, beside a store that is not there yet."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
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
    asked: Params,
) -> None:
    record(asked, 0.80, 0.95)  # best by the test, which must not count
    for seed, validation in ((1, 0.85), (2, 0.89)):
        record(changed(asked, seed=seed, lr=0.1), validation, 0.7, name="faster")
    record(changed(asked, mlp=changed(asked.mlp, hidden=(64,))), 0.84, 0.9)  # type: ignore[arg-type]
    record(asked, 0.001, 0.002, "linear_regression")
    record(asked, 0.99, 0.99, status="FAILED")
    table = compare.compared(compare.recorded())
    assert list(table["model"]) == ["linear_regression", "mlp", "mlp", "mlp"]
    assert list(table["differs in"]) == ["(baseline)", "lr=0.1", "hidden=64", "(baseline)"]
    assert list(table["seeds"]) == [1, 2, 1, 1]
    shown = compare.readable(table)
    assert list(shown["validation accuracy"]) == ["", "0.8700 ± 0.028", "0.8400", "0.8000"]
    assert shown["validation loss"][0] == "0.001"
    assert shown["fingerprint"][1] == "2 of them"


def test_a_repeated_run_counts_once_and_the_newest_stands(asked: Params) -> None:
    for name, validation in (("first", 0.7), ("again", 0.8)):
        record(asked, validation, validation, name=name)
    runs = compare.recorded()
    assert len(runs) == 2 and len(compare.latest(runs)) == 1
    table = compare.compared(runs)
    assert table["validation_accuracy"].tolist() == [0.8]
    assert table["experiment"].tolist() == ["first"]  # an experiment repeats what it leaves alone


@pytest.mark.parametrize("form", [[], ["--markdown"], ["--csv"]])
def test_it_prints_text_markdown_or_csv(
    asked: Params, form: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    record(asked, 0.8, 0.75)
    monkeypatch.setattr(sys, "argv", ["compare", "mlp", *form])
    compare.main()
    printed = capsys.readouterr().out
    if form == ["--csv"]:
        (row,) = pd.read_csv(io.StringIO(printed)).to_dict("records")
        assert (row["model"], row["validation_accuracy"], row["seeds"]) == ("mlp", 0.8, 1)
    else:
        assert "0.8000" in printed and "0.7500" in printed and "(baseline)" in printed
    assert (printed.count("|") > 20) == (form == ["--markdown"])


def test_without_runs_it_says_how_to_make_some(asked: Params) -> None:
    with pytest.raises(InputError, match="`make repro` records some"):
        compare.recorded()
    tracking.connect()  # an empty store
    with pytest.raises(InputError, match="no finished run is recorded"):
        compare.recorded()


def test_a_model_that_does_not_exist_is_one_line() -> None:
    command = [sys.executable, "-m", "tools.compare", "perceptron"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no model perceptron: expected of linear_regression" in done.stderr
