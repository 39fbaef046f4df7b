"""Runs arrive whole in a real MLflow store, and say what they are."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow.entities import Run

from lab import params
from lab.common import files
from lab.networks import Shape
from tests import servers
from tests.conftest import Clone
from tracking import description, location, repository, run, store
from tracking.repository import ROOT

HISTORY = [
    {"epoch": e, "train_loss": 1 / e, "validation_loss": v}
    for e, v in ((1.0, 0.75), (2.0, 0.25), (3.0, 0.5))
]
DATA, TABLE = Path("data/set/train.csv"), Path("results/mlp/history.csv")
Record = Callable[..., None]


@pytest.fixture
def record(database: Path, git: Clone) -> Record:
    """A function that records a result in a repository without uncommitted changes."""
    shutil.copy(ROOT / "tests/params.yaml", "params.yaml")
    git.commit("first")
    files.write_csv(TABLE, HISTORY)
    metrics = {"test_loss": 0.5, "test_r2": None}
    shape = Shape(inputs=(4,), outputs=3)

    def record(digest: str = "f" * 64, table: Path = TABLE) -> None:
        digests = {DATA: "0" * 64, table: digest}
        figures = {"curves.png": Figure()}
        result = run.Result("mlp", params.load(), shape, HISTORY, metrics, digests, figures)
        with run.recorded(result):
            pass

    return record


def recorded() -> list[Run]:
    return servers.runs(location.store_uri(), "mlp")


def test_a_run_holds_parameters_metrics_tags_data_and_artifacts(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "good-name")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    record()
    (found,) = recorded()
    client, id_ = store.connect(), found.info.run_id
    assert found.info.status == "FINISHED" and found.info.run_name == "good-name"
    expected = description.plain(params.load().flat("mlp"))
    assert found.data.params == expected
    some = {"lr": "0.03", "hidden": "256,128", "optimizer": "sgd", "optimizer.momentum": "0.9"}
    assert some.items() <= expected.items()
    losses = client.get_metric_history(id_, "train_loss")
    assert [(m.step, m.value) for m in losses] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    best = {"epochs_to_best": 2.0, "best_validation_loss": 0.25}
    last = {"train_loss": 1 / 3, "validation_loss": 0.5, "test_loss": 0.5}
    assert found.data.metrics == last | best

    tags = found.data.tags
    assert tags["DVC_EXP_NAME"] == "good-name" and tags["DVC_EXP_BASELINE_REV"] == "abc"
    assert tags[f"sha256.{DATA}"] == "0" * 64
    assert tags["version.torch"].startswith("2.") and tags["platform"]
    assert tags["git.commit"] == repository.head()
    assert f"make replay RUN={id_}" in tags["mlflow.note.content"]

    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("set", "0" * 32)
    artifacts = {artifact.path for artifact in client.list_artifacts(id_)}
    assert artifacts == {"history.csv", "curves.png", "params.yaml"}
    figure = client.download_artifacts(id_, "curves.png", str(tmp_path))
    assert Path(figure).read_bytes().startswith(b"\x89PNG")


def test_an_equal_result_names_the_first_finished_run_of_it(record: Record) -> None:
    with pytest.raises(OSError, match="none"):
        record(table=Path("results/none"))
    for digest in ("f" * 64, "e" * 64, "f" * 64):
        record(digest)
    failed, first, other, again = recorded()
    assert [found.info.status for found in recorded()] == ["FAILED"] + ["FINISHED"] * 3
    assert again.data.tags["reproduces"] == first.info.run_id
    assert not any("reproduces" in found.data.tags for found in (failed, first, other))
