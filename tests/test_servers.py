"""The pipeline against real MLflow servers, one that keeps runs in sqlite, one in PostgreSQL.

The pipeline trains once: for the second server only the receipts are removed.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lab import files
from lab.params import CLASSES, MODELS
from tests.conftest import Clone
from tests.servers import mlflow_server, runs

pytestmark = pytest.mark.slow


def settings(address: str) -> dict[str, str]:
    """What a user sets, and more patience than the default for a machine with other work."""
    return {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_TIMEOUT": "100"}


class Recorded(NamedTuple):
    """A server that the pipeline has recorded its runs on."""

    kind: str
    address: str
    runs: dict[str, list[Run]]  # as they were then: the tests add others


@pytest.fixture(scope="module")
def clone(clone: Clone) -> Clone:
    """With more than one epoch where that takes no time."""
    clone.edit({"  epochs: 1\n  batch_size: 10\n": "  epochs: 3\n  batch_size: 10\n"})
    clone.commit("three epochs")
    return clone


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def recorded(
    request: pytest.FixtureRequest, clone: Clone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    for model in MODELS:
        (clone.folder / "results" / model / "receipt.json").unlink(missing_ok=True)
    with mlflow_server(request.param, tmp_path_factory.mktemp(request.param)) as address:
        clone.run("dvc", "repro", **settings(address))
        yield Recorded(request.param, address, {model: runs(address, model) for model in MODELS})


def test_repro_records_a_run_for_each_model_on_the_server(recorded: Recorded, clone: Clone) -> None:
    client = MlflowClient(tracking_uri=recorded.address)
    for model in MODELS:
        (run,) = recorded.runs[model]
        assert run.info.status == "FINISHED"
        history = files.read_csv(clone.folder / "results" / model / "history.csv")
        assert len(history) == (3 if model == "linear_regression" else 1)
        for name in history[0].keys() - {"epoch"}:
            logged = client.get_metric_history(run.info.run_id, name)
            assert sorted((metric.step, metric.value) for metric in logged) == [
                (row["epoch"], row[name]) for row in history
            ]
        final = files.read_json(clone.folder / "results" / model / "metrics.json")
        assert final.items() <= run.data.metrics.items()
    # Nothing went past the server.
    own = {"mlflow.db", "mlartifacts", "mlruns"}
    assert not own & {path.name for path in clone.folder.iterdir()}


def test_the_server_serves_the_artifacts(recorded: Recorded, clone: Clone, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=recorded.address)
    for model in MODELS:
        (run,) = recorded.runs[model]
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        results = clone.folder / "results" / model
        (tmp_path / model).mkdir()

        def download(name: str, run_id: str = run.info.run_id, model: str = model) -> bytes:
            return Path(client.download_artifacts(run_id, name, str(tmp_path / model))).read_bytes()

        for path in (results / "history.csv", results / "metrics.json"):
            assert download(path.name) == path.read_bytes()
        assert download("params.yaml") == (clone.folder / "params.yaml").read_bytes()
        assert download("curves.png").startswith(b"\x89PNG\r\n\x1a\n")


PREDICT = """
import json, sys
import mlflow, numpy as np
from safetensors.numpy import load_file

data, *models = sys.argv[1:]
table = np.loadtxt(f"{data}/regression/test.csv", np.float32, delimiter=",", skiprows=1)
images = load_file(f"{data}/fashion_mnist/test.safetensors")["images"][:1000]
grey = images.reshape(len(images), -1).astype(np.float32) / 256
for uri, x in zip(models, [table[:, :-1].copy(), grey, grey], strict=True):
    print(json.dumps(mlflow.pyfunc.load_model(uri).predict(x).tolist()))
"""


def test_the_server_serves_the_models_which_predict_as_evaluate_did(
    recorded: Recorded, clone: Clone, tmp_path: Path
) -> None:
    uris = [
        f"models:/{run.outputs.model_outputs[0].model_id}"
        for run in (recorded.runs[model][0] for model in MODELS)
    ]
    done = subprocess.run(
        ["python", "-c", PREDICT, str(clone.folder / "data"), *uris],
        cwd=tmp_path,  # where there is no lab but the one in the model
        # MLflow leaves what it fetches in TMPDIR.
        env=clone.environment | settings(recorded.address) | {"TMPDIR": str(tmp_path)},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for model, line in zip(MODELS, done.stdout.splitlines(), strict=True):
        outputs = json.loads(line)
        rows = files.read_rows(clone.folder / "results" / model / "predictions.csv")[: len(outputs)]
        if model == "linear_regression":
            assert [y for (y,) in outputs] == [float(row["predicted"]) for row in rows]
        else:
            found = [CLASSES[max(range(10), key=row.__getitem__)] for row in outputs]
            assert found == [row["predicted"] for row in rows]


def test_an_equal_result_names_the_run_on_the_server_that_it_reproduces(
    recorded: Recorded, clone: Clone
) -> None:
    (first,) = recorded.runs["linear_regression"]
    assert "reproduces" not in first.data.tags
    clone.run("python", "-m", "stages.record", "linear_regression", **settings(recorded.address))
    *_, last = runs(recorded.address, "linear_regression")
    assert last.info.run_id != first.info.run_id
    assert last.data.tags["reproduces"] == first.info.run_id


def test_processes_that_meet_at_a_fresh_server_are_all_recorded(
    recorded: Recorded, clone: Clone, tmp_path: Path
) -> None:
    models = ["softmax_regression", "mlp", "mlp"]  # two of them want the same experiment
    with (
        mlflow_server(recorded.kind, tmp_path) as address,
        ThreadPoolExecutor(len(models)) as pool,
    ):

        def record(model: str) -> str:
            return clone.run("python", "-m", "stages.record", model, **settings(address))

        list(pool.map(record, models))
        found = {model: [run.info.status for run in runs(address, model)] for model in models}
    assert found == {"softmax_regression": ["FINISHED"], "mlp": ["FINISHED"] * 2}


def test_compare_prints_the_runs_of_the_server(recorded: Recorded, clone: Clone) -> None:
    for form in ([], ["--csv"], ["--markdown"]):
        table = clone.run("python", "-m", "tools.compare", *form, **settings(recorded.address))
        for model in MODELS:
            assert model in table
            (run,) = recorded.runs[model]
            if accuracy := run.data.metrics.get("test_accuracy"):
                numbers = [float(number) for number in re.findall(r"\d\.\d+", table)]
                assert min(abs(number - accuracy) for number in numbers) < 0.0005


def test_replay_finds_a_run_of_the_server_identical_and_tags_it(
    recorded: Recorded, clone: Clone
) -> None:
    run_id = recorded.runs["linear_regression"][0].info.run_id
    output = clone.run("python", "-m", "tools.replay", run_id[:8], **settings(recorded.address))
    assert "identical" in output
    tags = MlflowClient(tracking_uri=recorded.address).get_run(run_id).data.tags
    assert tags["replayed"].startswith("identical on")
