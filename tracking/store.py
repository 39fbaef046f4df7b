"""MLflow's store: whether it can be used, and the experiments in it."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator

import mlflow
import requests
import sqlalchemy
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from lab.common import workspace
from lab.common.files import InputError, one_line, root_cause
from lab.schema import Params
from tracking.location import SQLITE, database, store_uri, without_password

VIEW = "results"  # the key of the saved view, as links to it name it
logging.getLogger("mlflow").setLevel(logging.WARNING)  # not each table that it creates
# Nor, in several lines, an error that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def connect(create: bool = True) -> mlflow.MlflowClient:
    """A client of the store. Raises InputError for one that is missing and not to be created.

    MLflow creates a sqlite store without a lock, and several processes that do so all fail.
    So one process creates it, beside its place, and moves it there.
    """
    uri, path = store_uri(), database()
    if not path:
        _require_answer(uri)
    elif not path.exists():
        if not create:
            raise InputError(f"{path}: no runs are recorded here: `make repro` records some")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=120):
            if not path.exists():
                fresh = path.with_name(f".{path.name}.new")
                fresh.unlink(missing_ok=True)
                mlflow.MlflowClient(f"{SQLITE}{fresh}").search_experiments()
                fresh.replace(path)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def _require_answer(uri: str) -> None:
    """Raise InputError where a server does not answer within seconds; MLflow waits for minutes."""
    try:
        if uri.startswith("http"):
            patience = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or 5)
            requests.get(f"{uri}/health", timeout=patience, stream=True).close()
        else:
            sqlalchemy.create_engine(uri).connect().close()
    except requests.exceptions.SSLError:
        pass  # which certificates to trust is among MLflow's own settings
    except (requests.RequestException, SQLAlchemyError, ValueError) as error:
        raise InputError(
            f"the tracking server at {without_password(uri)} does not answer: start it, or set"
            " MLFLOW_TRACKING_URI to another; then `dvc repro` goes on from here"
            f" ({root_cause(error)[:200]})"
        ) from error


def experiment(client: mlflow.MlflowClient, params: Params, model: str) -> str:
    """The id of the model's experiment, which is created where it is missing."""
    found = client.get_experiment_by_name(model)
    if not found:
        location = None  # a server has a place of its own for artifacts
        if not store_uri().startswith("http"):
            # A database alone would put artifacts below the current folder.
            root = path.parent if (path := database()) else workspace.main_root()
            location = (root / "mlartifacts" / model).absolute().as_uri()
        try:
            return str(client.create_experiment(model, location, experiment_tags(params, model)))
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":  # another process was faster
                found = client.get_experiment_by_name(model)
            if not found:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(
            f"MLflow's experiment {model} is deleted: restore it, or remove it for good"
        )
    return str(found.experiment_id)


def experiment_tags(params: Params, model: str) -> dict[str, str]:
    """A description, and a view of the runs with parameters and results, which MLflow's lacks."""
    measures = params.dataset(model).task.measures
    columns = [f"metrics.`{side}_{m}`" for m in measures for side in ("validation", "test")]
    settings = ["lr", "seed", "epochs", "batch_size", "optimizer"]
    settings += type(params.architecture(model)).model_fields
    columns += [f"params.`{key}`" for key in settings]
    columns += ["tags.`baseline`", "tags.`replayed`"]
    order = {"orderByKey": columns[0], "orderByAsc": measures[0] == "loss"}
    state = json.dumps({"selectedColumns": columns} | order)
    view = {"name": "Results", "createdAt": int(1000 * time.time()), "state": state}
    return {
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
        MLFLOW_RUN_NOTE: f"The runs of {model}, as the pipeline records them."
        " *Views*, *Results* shows parameters and results as columns, best validation first.",
    }


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Errors of MLflow and its libraries as an InputError: `what`, the store, and the reason."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, requests.RequestException) as error:
        said, _, _ = one_line(error).partition(" [SQL: ")  # not the whole statement as well
        raise InputError(f"{what} ({without_password(store_uri())}): {said[:500]}") from error
