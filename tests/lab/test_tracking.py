"""Runs arrive whole in a real MLflow store, and say what they are and nothing else."""

import getpass
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import exact
from lab import files, models, repository, tracking
from lab.files import InputError
from lab.models import Architecture

HISTORY = [
    {"epoch": e, "train_loss": 1 / e, "validation_loss": v}
    for e, v in ((1.0, 0.75), (2.0, 0.25), (3.0, 0.5))
]


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., None]:
    folder = tmp_path / "result"
    model = folder / "model.safetensors"
    models.save(models.build(Architecture(inputs=4, outputs=3, hidden=(5,)), 1), model)
    files.write_csv(folder / "history.csv", HISTORY)
    digest = files.sha256(model)
    data = Path("data/set/train.csv")

    def call(name: str = "mlp", digest: str = digest, **changes: object) -> None:
        arguments = {
            "params": {"seed": 1, "lr": 0.03, "hidden": (5,)},
            "history": HISTORY,
            "metrics": {"test_loss": 0.5, "test_r2": None},
            "digests": {Path("results/mlp/model.safetensors"): digest, data: "0" * 64},
            "data": [data],
            "artifacts": [folder / "history.csv"],
            "model": model,
            "shape": (4, 3),
            "pictures": {"curves.png": Figure()},
            "description": lambda run: f"replay {run}",
        }
        with tracking.recorded(name, **(arguments | changes)):  # type: ignore[arg-type]
            pass

    return call


def runs(name: str = "mlp") -> list[mlflow.entities.Run]:
    client = tracking.connect()
    return client.search_runs([tracking.experiment(client, name)], order_by=["start_time ASC"])


def test_a_run_holds_parameters_metrics_tags_data_artifacts_and_model(
    store: Path, record: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "good-name")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    record()
    (run,) = runs()
    client = tracking.connect()
    assert run.info.status == "FINISHED" and run.info.run_name == "good-name"
    assert run.data.params == {"seed": "1", "lr": "0.03", "hidden": "5"}
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in losses] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.data.metrics == {
        "train_loss": 1 / 3, "validation_loss": 0.5, "test_loss": 0.5,
        "epochs_to_best": 2.0, "best_validation_loss": 0.25,
    }  # fmt: skip

    tags = run.data.tags
    assert tags["DVC_EXP_NAME"] == "good-name" and tags["DVC_EXP_BASELINE_REV"] == "abc"
    assert tags["sha256.data/set/train.csv"] == "0" * 64
    assert tags["version.torch"].startswith("2.") and tags["platform"]
    assert tags["git.commit"] == repository.head()

    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("set", "0" * 32)
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names - {"changes.patch"} == {"history.csv", "curves.png"}
    picture = client.download_artifacts(run.info.run_id, "curves.png", str(tmp_path))
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert tags["mlflow.note.content"] == f"replay {run.info.run_id}"
    assert "baseline" not in tags

    uri = f"models:/{run.outputs.model_outputs[0].model_id}"
    x = torch.linspace(-1, 1, 40).view(10, 4)
    model = models.load(tmp_path / "result" / "model.safetensors")
    with exact.mode():
        own = models.predict(model, x).numpy()
    served = mlflow.pyfunc.load_model(uri)
    assert np.array_equal(served.predict(x.numpy()), own)
    assert np.array_equal(served.predict(x.numpy()[3:4]), own[3:4])  # in any batch


@pytest.mark.parametrize(("patch", "name", "expected"), [
    (b"", "", "true"), (b"diff", "", None), (b"", "an-experiment", None),
])  # fmt: skip
def test_the_commit_as_it_is_is_the_baseline(
    store: Path, record: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    patch: bytes, name: str, expected: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(repository, "state", lambda: ("c" * 40, patch))
    monkeypatch.setenv("DVC_EXP_NAME", name)
    record()
    (run,) = runs()
    assert run.data.tags.get("baseline") == expected


def test_nothing_of_the_machine_but_its_platform_is_in_a_run(
    store: Path, record: Callable[..., None]
) -> None:
    record()
    (run,) = runs()
    client = tracking.connect()
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    texts = [*run.data.tags.values(), *run.data.params.values(), *logged.tags.values()]
    texts += [dataset.dataset.source for dataset in run.inputs.dataset_inputs]
    home, user = str(Path.home()), getpass.getuser()
    assert not [text for text in texts if str(Path.cwd()) in text or home in text or text == user]
    assert "mlflow.user" not in run.data.tags and "mlflow.user" not in logged.tags


def test_an_equal_result_names_the_run_that_it_reproduces(
    store: Path, record: Callable[..., None]
) -> None:
    record()
    record()
    record(digest="f" * 64)
    first, second, other = runs()
    assert "reproduces" not in first.data.tags
    assert second.data.tags["reproduces"] == first.info.run_id
    assert "reproduces" not in other.data.tags


def test_a_run_that_breaks_off_is_marked_failed(store: Path, record: Callable[..., None]) -> None:
    with pytest.raises(OSError, match="none"):
        record(artifacts=[Path("none")])
    assert [run.info.status for run in runs()] == ["FAILED"]
    record()
    assert [run.info.status for run in runs()] == ["FAILED", "FINISHED"]
    assert "reproduces" not in runs()[1].data.tags


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file:./mlruns", "expected sqlite:///FILE or the address of a server"),
        ("nonsense", "expected sqlite:///FILE"),
        ("sqlite:///x.db?timeout=5", "with \\? or % in it"),
        ("sqlite:////pct%41/x.db", "with \\? or % in it"),
        ("sqlite:///{folder}", "this is a folder"),
        ("sqlite:///{folder}/junk.db", "not a sqlite database"),
        ("postgresql://me:secret@127.0.0.1:9/x", "server at 127.0.0.1:9/x does not answer: start"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(
    record: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    uri: str, reason: str,
) -> None:  # fmt: skip
    (tmp_path / "junk.db").write_bytes(b"junk")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path))
    with pytest.raises(InputError, match=reason) as error:
        record()
    assert "\n" not in str(error.value)


def test_a_dead_server_is_one_line_and_soon(
    record: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 does not answer: start it") as error:
        record()
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir("/")  # as the folder of a queued experiment is another
    assert tracking.store_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/my.db")
    assert tracking.store_uri() == f"sqlite:///{tmp_path}/runs/my.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/my.db")
    assert tracking.store_uri() == "sqlite:////elsewhere/my.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.store_uri() == "http://127.0.0.1:5000"


def test_artifacts_lie_beside_the_database(store: Path, record: Callable[..., None]) -> None:
    record()
    (run,) = runs()
    assert run.info.artifact_uri.startswith(f"file://{store.parent}/mlartifacts/mlp/")
