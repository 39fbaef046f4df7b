"""MLflow: where runs are kept, and what one holds.

A run's parameters, tags and artifacts say nothing of the user's machine but its
platform: no path, no user name. Only MLflow's own record of where the artifacts of a
local store lie is a path.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before MLflow is imported. A dead server should be an error soon, not after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import numpy as np
from filelock import FileLock
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from lab import repository
from lab.files import InputError, one_line

SQLITE = "sqlite:///"
SOURCE = "stages/record.py"
SERVING = ("mlflow", "numpy", "pydantic", "ruamel.yaml", "safetensors", "torch")
logging.getLogger("mlflow").setLevel(logging.WARNING)  # not each table that it creates


def main_root() -> Path:
    """The main repository, also within a queued or temporary DVC experiment."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db at the root of the main repository.

    A relative sqlite path counts from that root: an experiment's own folder is
    deleted after it, and the runs would go with it. Raises InputError for a store
    that cannot be used.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    database = _database(uri)
    return f"{SQLITE}{database}" if database else uri


def _database(uri: str) -> Path | None:
    """The file of a sqlite store; None for a server."""
    if not uri.startswith(SQLITE):
        if not uri.startswith(("http://", "https://", "postgresql")):
            raise InputError(
                f"MLFLOW_TRACKING_URI = {uri}: expected sqlite:///FILE or the address of a server"
            )
        return None
    path = main_root() / uri.removeprefix(SQLITE)
    if set("?%") & set(str(path)):
        raise InputError(f"{path}: MLflow cannot keep runs at a path with ? or % in it")
    if path.is_dir():
        raise InputError(f"{path}: expected a file for MLflow's database, this is a folder")
    if path.exists():
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise InputError(f"{path}: not a sqlite database")
        if not os.access(path, os.W_OK):
            raise InputError(f"{path}: MLflow's database cannot be written")
    return path


def connect(create: bool = True) -> mlflow.MlflowClient:
    """A client of the store, which exists and is whole afterwards.

    Raises InputError for a sqlite store that is missing and not to be created.

    MLflow creates a sqlite store without a lock: of several processes that meet at a
    fresh one all fail. So one process creates it, beside its place, and moves it there.
    """
    uri = store_uri()
    database = _database(uri)
    if database and not database.exists():
        if not create:
            raise InputError(f"{database}: no runs are recorded here: `make repro` records some")
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock", timeout=120):
            if not database.exists():
                fresh = database.with_name(f".{database.name}.new")
                fresh.unlink(missing_ok=True)
                mlflow.MlflowClient(f"{SQLITE}{fresh}").search_experiments()
                fresh.replace(database)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def experiment(client: mlflow.MlflowClient, name: str) -> str:
    """The id of the experiment of this name, created where it is missing."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None  # a server knows a place of its own
        if not store_uri().startswith("http"):
            # A database alone would put artifacts below the current folder.
            database = _database(store_uri())
            root = database.parent if database else main_root()
            location = (root / "mlartifacts" / name).absolute().as_uri()
        try:
            return str(client.create_experiment(name, location, experiment_tags(name)))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(
            f"MLflow's experiment {name} is deleted: restore it, or remove it for good"
        )
    return str(found.experiment_id)


def experiment_tags(name: str) -> dict[str, str]:
    """The experiment's description, and a saved view of its runs with the columns that matter.

    MLflow's own table of runs shows neither parameters nor results.
    """
    measures = ("loss",) if name == "linear_regression" else ("accuracy", "loss")
    columns = [f"metrics.`{side}_{m}`" for m in measures for side in ("validation", "test")]
    columns += [f"params.`{key}`" for key in ("lr", "seed", "epochs", "batch_size")]
    columns += [f"params.`{key}`" for key in ("hidden", "activation") if name == "mlp"]
    columns += ["tags.`baseline`", "tags.`replayed`"]
    order = {"orderByKey": columns[0], "orderByAsc": measures == ("loss",)}
    state = json.dumps({"selectedColumns": columns} | order)
    view = {"name": "Results", "createdAt": _now(), "state": state}
    return {
        "mlflow.sharedViewState.results": json.dumps(view),
        MLFLOW_RUN_NOTE: f"The runs of {name}, as the pipeline records them."
        " *Views*, *Results* shows parameters and results as columns, best validation first.",
    }


def _now() -> int:
    """Milliseconds, as MLflow counts time."""
    return int(time.time() * 1000)


def record(
    name: str,
    *,
    params: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    metrics: Mapping[str, float | None],
    digests: Mapping[Path, str],
    data: Sequence[Path],
    artifacts: Sequence[Path],
    model: Path,
    shape: tuple[int, int],
    pictures: Mapping[str, Figure],
    description: Callable[[str], str],
) -> None:
    """Record one result as a run of the experiment `name`.

    `digests` are the sha256 of the files that make up the result, data included;
    `shape` is the model's (inputs, outputs); `pictures` are by file name; `description`
    makes Markdown of the run's id. Raises InputError where the store fails.
    """
    with one_line_errors(f"MLflow did not take the run of {name}"):
        client = connect()
        experiment_id = experiment(client, name)
        commit, patch = repository.state()
        tags = {
            "fingerprint": fingerprint(digests),
            "git.commit": commit,
            "git.dirty": str(bool(patch)).lower(),
            "mlflow.source.git.commit": commit,
            "mlflow.source.name": SOURCE,
            **_dvc_tags(),
            **_environment_tags(),
            **{f"sha256.{path.as_posix()}": digest for path, digest in digests.items()},
        }
        run_name = tags.get("DVC_EXP_NAME") or f"{commit[:7]}, changed"
        if not patch and "DVC_EXP_NAME" not in tags:
            tags["baseline"] = "true"  # the commit as it is, which experiments are compared with
            run_name = f"baseline {commit[:7]}"
        if first := _first_with(client, experiment_id, tags["fingerprint"]):
            tags["reproduces"] = first
        with _run(client, experiment_id, run_name, tags) as run_id:
            client.set_tag(run_id, MLFLOW_RUN_NOTE, description(run_id))
            _log_values(client, run_id, params, history, metrics)
            for file, picture in pictures.items():
                # Not in a folder, where MLflow's page that compares runs would not find them.
                client.log_figure(run_id, picture, file)
            for path in artifacts:
                client.log_artifact(run_id, str(path))
            if patch:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "changes.patch")
                    path.write_bytes(patch)
                    client.log_artifact(run_id, str(path))
            for path in data:
                # MLflow keeps 36 characters of a digest; the tags hold all 64.
                source = CodeDatasetSource({"path": path.as_posix()})
                dataset = MetaDataset(  # type: ignore[abstract]  # as its own documentation does
                    source, name=path.parent.name, digest=digests[path][:32]
                )
                mlflow.log_input(dataset, context=path.stem)
            _log_model(client, model, *shape)


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Errors of MLflow and of what it stands on, as an InputError that begins with `what`."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, RequestException) as error:
        raise InputError(f"{what}: {one_line(error)[:500]}") from error


@contextlib.contextmanager
def _run(
    client: mlflow.MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]
) -> Iterator[str]:
    """A run that ends as FINISHED, or as FAILED where the block raises. Yields its id."""
    # Not by mlflow.start_run alone: that adds the user's name and the script's path.
    run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    with mlflow.start_run(run_id=run_id):
        yield run_id


def _log_values(
    client: mlflow.MlflowClient,
    run_id: str,
    params: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    final: Mapping[str, float | None],
) -> None:
    """Log parameters, each epoch's metrics with the epoch as step, and the final metrics.

    And under names that begin with best, those of the epoch of the lowest validation loss.
    """
    now = _now()
    best = min(history, key=lambda row: row["validation_loss"])
    chosen = {f"best_{key}": value for key, value in best.items() if key.startswith("validation")}
    rows: list[tuple[int, Mapping[str, float | None]]] = [
        *((int(row["epoch"]), row) for row in history),
        (0, final),  # as of no epoch, which MLflow draws as bars
        (0, chosen | {"epochs_to_best": best["epoch"]}),
    ]
    metrics = [
        Metric(key, value, now, step)
        for step, row in rows
        for key, value in row.items()
        if key != "epoch" and value is not None
    ]
    client.log_batch(run_id, params=[Param(key, plain(value)) for key, value in params.items()])
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def plain(value: Any) -> str:
    """A list of one number as that number, so that runs can be sorted and plotted by it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _log_model(client: mlflow.MlflowClient, path: Path, inputs: int, outputs: int) -> None:
    """Log the safetensors file as a model that `mlflow.pyfunc.load_model` loads anywhere."""
    number = np.dtype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it wishes for an input example
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module="lab.serving",
            data_path=path.as_posix(),
            code_paths=["exact", "lab"],
            signature=ModelSignature(
                Schema([TensorSpec(number, (-1, inputs))]),
                Schema([TensorSpec(number, (-1, outputs))]),
            ),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in SERVING],
        )
    # MLflow adds the user's name and the path of the script.
    client.delete_logged_model_tag(logged.model_id, "mlflow.user")
    client.set_logged_model_tags(logged.model_id, {"mlflow.source.name": SOURCE})


def _first_with(client: mlflow.MlflowClient, experiment_id: str, fingerprint: str) -> str | None:
    """The id of the first finished run with this fingerprint."""
    runs = client.search_runs(
        [experiment_id],
        f"tags.fingerprint = '{fingerprint}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return str(runs[0].info.run_id) if runs else None


def fingerprint(digests: Mapping[Path, str]) -> str:
    """One digest of many files: of the lines that `sha256sum` prints, sorted by path."""
    lines = sorted((path.as_posix(), digest) for path, digest in digests.items())
    text = "".join(f"{digest}  {path}\n" for path, digest in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def _dvc_tags() -> dict[str, str]:
    """What DVC says of the experiment, where it is one."""
    names = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _environment_tags() -> dict[str, str]:
    """The libraries and the platform that the result should not depend on."""
    libraries = ("dvc", "mlflow", "pandas", "safetensors", "torch")
    versions = {f"version.{name}": importlib.metadata.version(name) for name in libraries}
    return versions | {"version.python": platform.python_version(), "platform": platform.platform()}
