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
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before MLflow is imported. A dead server should be an error soon, not after minutes.
FIRST_ANSWER = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or "3"  # seconds to wait for it
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("PGCONNECT_TIMEOUT", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import numpy as np
import requests
import sqlalchemy
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelOutput, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from lab import repository, workspace
from lab.files import InputError, one_line, root_cause

SQLITE = "sqlite:///"
SOURCE = "stages/record.py"
MARK = "recording"  # the tag by which a run that was left half-written is found again
VIEW = "results"  # the key of the saved view, as links to it name it
SERVING = ("mlflow", "numpy", "pydantic", "ruamel.yaml", "safetensors", "torch")
logging.getLogger("mlflow").setLevel(logging.WARNING)  # not each table that it creates
# Nor, in several lines, an error that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


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
    path = workspace.main_root() / uri.removeprefix(SQLITE)
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
    if not database:
        _require_answer(uri)
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


def _place(uri: str) -> str:
    """The store's address or path, without a password."""
    return uri.rpartition("@")[2].removeprefix(SQLITE)


def _require_answer(uri: str) -> None:
    """Ask a server for any answer at all, as MLflow itself would wait for minutes.

    Raises InputError where there is none within seconds.
    """
    try:
        if uri.startswith("http"):
            requests.get(f"{uri}/health", timeout=float(FIRST_ANSWER), stream=True).close()
        else:
            sqlalchemy.create_engine(uri).connect().close()
    except requests.exceptions.SSLError:
        pass  # which certificates to trust is among MLflow's own settings
    except (requests.RequestException, SQLAlchemyError, ValueError) as error:
        raise InputError(
            f"the tracking server at {_place(uri)} does not answer: start it, or set"
            " MLFLOW_TRACKING_URI to another; then `dvc repro` goes on from here"
            f" ({root_cause(error)[:200]})"
        ) from error


def experiment(client: mlflow.MlflowClient, name: str) -> str:
    """The id of the experiment of this name, created where it is missing."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None  # a server knows a place of its own
        if not store_uri().startswith("http"):
            # A database alone would put artifacts below the current folder.
            database = _database(store_uri())
            root = database.parent if database else workspace.main_root()
            location = (root / "mlartifacts" / name).absolute().as_uri()
        try:
            return str(client.create_experiment(name, location, experiment_tags(name)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise  # without asking a server again that does not answer
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
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
        MLFLOW_RUN_NOTE: f"The runs of {name}, as the pipeline records them."
        " *Views*, *Results* shows parameters and results as columns, best validation first.",
    }


def _now() -> int:
    """Milliseconds, as MLflow counts time."""
    return int(time.time() * 1000)


@contextlib.contextmanager
def recorded(
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
) -> Iterator[None]:
    """Record one result as a run of the experiment `name`, then run the block.

    Only where the block ends well does the run count as recorded: after a process that was
    killed in between, the next one finds the run and makes no second.

    `digests` are the sha256 of the files that make up the result, data included;
    `shape` is the model's (inputs, outputs); `pictures` are by file name; `description`
    makes Markdown of the run's id. Raises InputError where the store fails.
    """
    commit, patch = repository.state()
    tags = _origin_tags(commit, patch) | {
        "fingerprint": fingerprint(digests),
        **{f"sha256.{path.as_posix()}": digest for path, digest in digests.items()},
    }
    if not patch and "DVC_EXP_NAME" not in tags:
        tags["baseline"] = "true"  # the commit as it is, which experiments are compared with
    with _mark() as mark:
        with one_line_errors(f"MLflow did not take the run of {name}"):
            client = connect()
            experiment_id = experiment(client, name)
            finished = _settle(client, tags)
            if not finished:
                if first := _first_with(client, experiment_id, tags["fingerprint"]):
                    tags["reproduces"] = first
                with _run(client, experiment_id, tags | {MARK: mark}) as run_id:
                    client.set_tag(run_id, MLFLOW_RUN_NOTE, description(run_id))
                    _log_values(client, run_id, params, [*history, _final(history, metrics)])
                    for file, picture in pictures.items():
                        # Not in a folder, where MLflow's page that compares would not find them.
                        client.log_figure(run_id, picture, file)
                    for path in artifacts:
                        client.log_artifact(run_id, str(path))
                    _log_patch(client, run_id, patch)
                    for path in data:
                        # MLflow keeps 36 characters of a digest; the tags hold all 64.
                        source = CodeDatasetSource({"path": path.as_posix()})
                        dataset = MetaDataset(  # type: ignore[abstract]  # as it is documented
                            source, name=path.parent.name, digest=digests[path][:32]
                        )
                        mlflow.log_input(dataset, context=path.stem)
                    _log_model(client, run_id, model, shape)
        yield
        for path in finished:
            path.unlink(missing_ok=True)


class _FailedError(Exception):
    """Ends a run as FAILED."""


def record_failure(
    name: str, *, params: Mapping[str, Any], history: Sequence[Mapping[str, float]], why: str
) -> None:
    """Record a training that came to nothing as a FAILED run, with its history up to there.

    Raises InputError where the store fails.
    """
    commit, patch = repository.state()
    tags = _origin_tags(commit, patch) | {"failure": why, MLFLOW_RUN_NOTE: why}
    with _mark() as mark, one_line_errors(f"MLflow did not take the failed run of {name}"):
        client = connect()
        experiment_id = experiment(client, name)
        with (
            contextlib.suppress(_FailedError),
            _run(client, experiment_id, tags | {MARK: mark}) as run_id,
        ):
            _log_values(client, run_id, params, history)
            client.log_artifact(run_id, "params.yaml")
            _log_patch(client, run_id, patch)
            raise _FailedError


@contextlib.contextmanager
def _mark() -> Iterator[str]:
    """A mark for a run under way, with a file of that name, locked while this process lives.

    The file is removed where the block ends well. One that stays says that a run may be half
    written: a killed process, or one that lost its server, cannot say so in the store.
    """
    mark = uuid.uuid4().hex
    path = _marks() / mark
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        path.write_text(mark)  # not empty, as is what `_settle` makes of one that has just gone
        yield mark
        path.unlink(missing_ok=True)


def _marks() -> Path:
    """The folder of the marks, one for each store."""
    store = hashlib.sha256(store_uri().encode()).hexdigest()[:16]
    return workspace.main_root() / workspace.NOTES / "recording" / store


def _settle(client: mlflow.MlflowClient, tags: Mapping[str, str]) -> list[Path]:
    """End as FAILED the runs that recorders left half-written which live no more.

    Returns the marks of those that had in fact finished the run that these tags describe, to be
    removed with the block's end. The marks of other finished runs stay for those they concern.
    """
    finished = []
    for path in _marks().iterdir():
        try:
            with FileLock(path, timeout=0):
                runs = _marked(client, path.name) if path.stat().st_size else []
                for run in runs:
                    if run.info.status == "RUNNING":
                        client.set_tag(run.info.run_id, "failure", "the recorder did not finish")
                        client.set_terminated(run.info.run_id, "FAILED")
                if not any(run.info.status == "FINISHED" for run in runs):
                    path.unlink()
                elif any(tags.items() <= run.data.tags.items() for run in runs):
                    finished.append(path)
        except Timeout:
            continue  # its process is at work
    return finished


def _marked(client: mlflow.MlflowClient, mark: str) -> Sequence[Run]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(ids, f"tags.{MARK} = '{mark}'")


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Errors of MLflow and its libraries as an InputError: `what`, the store, and the reason."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, requests.RequestException) as error:
        said, _, _ = one_line(error).partition(" [SQL: ")  # not the whole statement as well
        raise InputError(f"{what} ({_place(store_uri())}): {said[:500]}") from error


@contextlib.contextmanager
def _run(client: mlflow.MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Iterator[str]:
    """A run that ends as FINISHED, or as FAILED where the block raises. Yields its id."""
    commit = tags["git.commit"][:7]
    name = f"baseline {commit}" if "baseline" in tags else f"{commit}, changed"
    name = tags.get("DVC_EXP_NAME") or (f"{commit}, failed" if "failure" in tags else name)
    # Not by mlflow.start_run alone: that adds the user's name and the script's path.
    run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    with mlflow.start_run(run_id=run_id):
        try:
            yield run_id
        except BaseException:
            # To say FAILED is worth a moment; to a server that is gone it cannot be said.
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
            raise


def _log_values(
    client: mlflow.MlflowClient,
    run_id: str,
    params: Mapping[str, Any],
    history: Sequence[Mapping[str, float | None]],
) -> None:
    """Log parameters, and the metrics of each row with its epoch as step, 0 where it has none."""
    now = _now()
    metrics = [
        Metric(key, value, now, int(row.get("epoch") or 0))
        for row in history
        for key, value in row.items()
        if key != "epoch" and value is not None
    ]
    client.log_batch(run_id, params=[Param(key, plain(value)) for key, value in params.items()])
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def _final(
    history: Sequence[Mapping[str, float]], metrics: Mapping[str, float | None]
) -> dict[str, float | None]:
    """What is of no epoch, and MLflow draws as bars: the test metrics, and what was best.

    That is, under names that begin with best, the epoch of the lowest validation loss.
    """
    best = min(history, key=lambda row: row["validation_loss"])
    chosen = {f"best_{key}": value for key, value in best.items() if key.startswith("validation")}
    return {**metrics, **chosen, "epochs_to_best": best["epoch"]}


def _log_patch(client: mlflow.MlflowClient, run_id: str, patch: bytes) -> None:
    """Log what the working tree adds to the commit, where it adds anything."""
    if patch:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "changes.patch")
            path.write_bytes(patch)
            client.log_artifact(run_id, str(path))


def plain(value: Any) -> str:
    """A list of one number as that number, so that runs can be sorted and plotted by it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _log_model(
    client: mlflow.MlflowClient, run_id: str, path: Path, shape: tuple[int, int]
) -> None:
    """Log the safetensors file as a model that `mlflow.pyfunc.load_model` loads anywhere."""
    number = np.dtype(np.float32)
    run = client.get_run(run_id)
    # Not by log_model: that adds the user's name, the script's path, git's remote and the store's
    # path, and asks a server that hangs once more.
    model = client.create_logged_model(
        run.info.experiment_id, "model", run_id, {"mlflow.source.name": SOURCE}, run.data.params
    )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it wishes for an input example
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            mlflow_model=Model("model", run_id, model_uuid=model.model_id, model_id=model.model_id),
            loader_module="lab.serving",
            data_path=path.as_posix(),
            code_paths=["exact", "lab"],
            signature=ModelSignature(
                Schema([TensorSpec(number, (-1, shape[0]))]),
                Schema([TensorSpec(number, (-1, shape[1]))]),
            ),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in SERVING],
        )
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")


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


def _origin_tags(commit: str, patch: bytes) -> dict[str, str]:
    """Where a run comes from: commit, surroundings, and what DVC says of the experiment."""
    names = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
    return {
        "git.commit": commit,
        "git.dirty": str(bool(patch)).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": SOURCE,
        **{name: os.environ[name] for name in names if os.environ.get(name)},
        **_environment_tags(),
    }


def _environment_tags() -> dict[str, str]:
    """The libraries and the platform that the result should not depend on."""
    libraries = ("dvc", "mlflow", "pandas", "safetensors", "torch")
    versions = {f"version.{name}": importlib.metadata.version(name) for name in libraries}
    return versions | {"version.python": platform.python_version(), "platform": platform.platform()}
