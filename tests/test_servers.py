"""The pipeline against a real MLflow server, which keeps runs in PostgreSQL or in sqlite."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run

import exact
from lab.common import files
from lab.datasets.fashion_mnist import CLASSES
from stages import record
from tests import servers
from tests.conftest import Clone, Program
from tests.servers import MODELS, Stage
from tools import compare, replay
from tracking.run import log_data

pytestmark = pytest.mark.slow
LINEAR = "linear_regression"


class Recorded(NamedTuple):
    """A finished pipeline and the server that has its runs."""

    clone: Clone
    settings: dict[str, str]
    runs: dict[str, Run]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Without --all, one server is enough: other tests use sqlite."""
    kinds = ["postgresql", "sqlite"]
    if not metafunc.config.getoption("--all"):
        kinds = kinds[:1] if servers.POSTGRESQL else kinds[1:]
    metafunc.parametrize("recorded", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def recorded(
    request: pytest.FixtureRequest, finished: Clone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp(request.param)
    with servers.mlflow_server(request.param, folder) as address:
        settings = servers.server_settings(address)
        clone = finished.copy(folder / "clone")
        clone.forget_runs()
        # More than one epoch where that takes no time.
        clone.edit({"  epochs: 1\n  batch_size: 10\n": "  epochs: 3\n  batch_size: 10\n"})
        clone.commit("three epochs")
        clone.run("dvc", "repro", f"record@{LINEAR}", **settings)
        others = [Stage(clone.folder, "record", model, **settings) for model in MODELS[1:]]
        assert [stage.end() for stage in others] == [(0, "")] * len(others)
        runs = {model: servers.runs(address, model) for model in MODELS}
        assert [len(of_model) for of_model in runs.values()] == [1] * len(MODELS)
        yield Recorded(clone, settings, {model: run for model, (run,) in runs.items()})


@pytest.fixture
def address(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, for programs that run in this process as in the clone."""
    monkeypatch.chdir(recorded.clone.folder)
    for name, value in recorded.settings.items():
        monkeypatch.setenv(name, value)
    return recorded.settings["MLFLOW_TRACKING_URI"]


def test_the_server_has_all_metrics_and_artifacts(
    recorded: Recorded, address: str, tmp_path: Path
) -> None:
    client = MlflowClient(address)
    for model, run in recorded.runs.items():
        assert run.info.status == "FINISHED"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        servers.require_every_metric(address, run)
        results = Path("results", model)
        tables = [results / name for name in record.TABLES]
        for path in (*tables, Path("params.yaml")):
            found = client.download_artifacts(run.info.run_id, path.name, str(tmp_path))
            assert Path(found).read_bytes() == path.read_bytes()
        assert "curves.png" in [file.path for file in client.list_artifacts(run.info.run_id)]
    assert recorded.runs[LINEAR].data.params["epochs"] == "3"
    # There is no other store.
    assert not {"mlflow.db", "mlartifacts", "mlruns"} & {path.name for path in Path().iterdir()}


PREDICT = """
import json, sys
import mlflow, numpy as np
from safetensors.numpy import load_file

data, *models = sys.argv[1:]
table = np.loadtxt(f"{data}/regression_data/test.csv", np.float32, delimiter=",", skiprows=1)
images = load_file(f"{data}/fashion_mnist/test.safetensors")["images"][:1000]
grey = images[:, None].astype(np.float32) / 256
for uri, x in zip(models, [table[:, :-1].copy(), grey, grey], strict=True):
    predict = mlflow.pyfunc.load_model(uri).predict
    outputs = predict(x)
    assert np.array_equal(predict(x[3:4]), outputs[3:4])
    print(json.dumps(outputs.tolist()))
"""


def test_a_model_from_the_server_predicts_the_bits_of_evaluate_in_any_batch(
    recorded: Recorded, tmp_path: Path
) -> None:
    ids = [run.outputs.model_outputs[0].model_id for run in recorded.runs.values()]
    # In a folder without lab. MLflow leaves its downloads in TMPDIR.
    user = Clone(tmp_path, recorded.clone.mirror)
    command = ["python", "-c", PREDICT, str(recorded.clone.folder / "data")]
    command += [f"models:/{id_}" for id_ in ids]
    printed = user.run(*command, **recorded.settings, TMPDIR=str(tmp_path))
    for model, line in zip(MODELS, printed.splitlines(), strict=True):
        outputs = torch.tensor(json.loads(line))
        table = recorded.clone.folder / "results" / model / "predictions.csv"
        rows = files.read_rows(table)[: len(outputs)]
        if model == LINEAR:
            assert outputs[:, 0].tolist() == [float(row["predicted"]) for row in rows]
        else:
            with exact.mode():
                probability, predicted = outputs.softmax(1).max(1)
            assert probability.tolist() == [float(row["probability"]) for row in rows]
            assert [CLASSES[i] for i in predicted] == [row["predicted"] for row in rows]


def test_recorders_that_start_together_all_record(
    recorded: Recorded, finished: Clone, address: str, tmp_path: Path
) -> None:
    client = MlflowClient(address)
    experiment = recorded.runs[LINEAR].info.experiment_id
    client.rename_experiment(experiment, "aside")  # they all find that it does not exist
    folders = servers.copies(finished, tmp_path, 3)
    recorders = [Stage(folder, "record", LINEAR, **recorded.settings) for folder in folders]
    assert [recorder.end() for recorder in recorders] == [(0, "")] * 3
    runs = servers.runs(address, LINEAR)
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert "reproduces" not in runs[0].data.tags
    client.rename_experiment(runs[0].info.experiment_id, "of three")
    client.rename_experiment(experiment, LINEAR)


def log_together(client: MlflowClient, experiment: str, together: threading.Barrier) -> int:
    """Log a data set to a new run when all are ready; the number of those that the run has."""
    data = MetaDataset(  # type: ignore[abstract]  # as it is documented
        CodeDatasetSource({"path": "data"}), name="data", digest="0" * 32
    )
    run_id = client.create_run(experiment).info.run_id
    with mlflow.start_run(run_id=run_id):
        together.wait()
        log_data(data, "training")
    return len(client.get_run(run_id).inputs.dataset_inputs)


def test_the_same_data_logged_at_the_same_time_is_logged_for_every_run(address: str) -> None:
    client = MlflowClient(address)
    mlflow.set_tracking_uri(address)
    for number in range(10):  # without the second attempt, it fails in some rounds
        experiment = client.create_experiment(f"data {number}")
        with ThreadPoolExecutor(4) as threads:
            ready = threading.Barrier(4)
            logs = [threads.submit(log_together, client, experiment, ready) for _ in range(4)]
            assert [log.result() for log in logs] == [1] * 4


def test_compare_and_replay_read_the_runs_of_the_server(
    recorded: Recorded, address: str, in_process: Program
) -> None:
    done = in_process(compare, "--csv")
    assert done.returncode == 0, done.stderr
    for model, run in recorded.runs.items():
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(model))
        assert str(run.data.metrics["test_loss"]) in line
    run_id = recorded.runs[LINEAR].info.run_id
    done = in_process(replay, run_id[:8])
    assert done.returncode == 0 and "identical" in done.stdout, done.stderr
    tags = MlflowClient(address).get_run(run_id).data.tags
    assert tags["replayed"].startswith("identical on")
