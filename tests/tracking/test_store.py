"""What is said of a store that cannot be used, and what an experiment in one has."""

import json
import time
from pathlib import Path

import pytest

from lab import params
from lab.common.files import InputError
from tracking import store
from tracking.repository import ROOT


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file:./mlruns", "expected sqlite:///FILE or the address of a server"),
        ("sqlite:///x.db?timeout=5", "with \\? or % in it"),
        ("sqlite:////pct%41/x.db", "with \\? or % in it"),
        ("sqlite:///{folder}", "this is a folder"),
        ("sqlite:///{folder}/junk.db", "not a sqlite database"),
        ("sqlite:///{folder}/none.db", "no runs are recorded here"),
        ("http://127.0.0.1:9", "server at http://127.0.0.1:9 does not answer: start it"),
        ("postgresql://me:secret@127.0.0.1:9/x", "server at 127.0.0.1:9/x does not answer: start"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_and_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    (tmp_path / "junk.db").write_bytes(b"junk")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path))
    started = time.monotonic()
    with pytest.raises(InputError, match=reason) as error:
        store.connect(create=False)
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["junk.db"]


@pytest.mark.parametrize(
    ("model", "first", "setting"),
    [("linear_regression", "loss", "lr"), ("mlp", "accuracy", "hidden")],
)
def test_an_experiment_has_a_view_and_its_artifacts_lie_beside_the_database(
    database: Path, model: str, first: str, setting: str
) -> None:
    client, p = store.connect(), params.load(ROOT / "tests/params.yaml")
    id_ = store.experiment(client, p, model)
    assert store.experiment(client, p, model) == id_  # found, not made again
    experiment = client.get_experiment(id_)
    assert experiment.artifact_location == f"file://{database.parent}/mlartifacts/{model}"
    view = json.loads(json.loads(experiment.tags["mlflow.sharedViewState.results"])["state"])
    assert view["orderByKey"] == f"metrics.`validation_{first}`"
    assert view["orderByAsc"] == (first == "loss")
    assert {view["orderByKey"], f"metrics.`test_{first}`", f"params.`{setting}`"} <= {
        *view["selectedColumns"]
    }
    client.delete_experiment(id_)
    with pytest.raises(InputError, match=f"experiment {model} is deleted: restore it"):
        store.experiment(client, p, model)
