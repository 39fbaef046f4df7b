"""A run in MLflow: what is recorded of a result, and of a training that failed.

It tells no path and no user name, but for the path that MLflow adds of a local store's artifacts.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from lab.networks import Shape
from lab.schema import Params
from tracking import description, repository
from tracking.packaging import SOURCE, log_model
from tracking.recovery import MARKER, marker, recover_interrupted_runs
from tracking.store import connect, experiment, one_line_errors


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run holds. `digests`: sha256 of all files of the result, data included."""

    model: str
    params: Params
    shape: Shape
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float | None]
    digests: Mapping[Path, str]
    figures: Mapping[str, Figure]


@contextlib.contextmanager
def recorded(result: Result) -> Iterator[None]:
    """Record one result as a run of the model's experiment, then run the block.

    If a process is killed before the block has ended, the next one finds the run and makes no
    second. Raises InputError where the store fails.
    """
    origin, patch = _origin()
    tags = origin | {
        "fingerprint": fingerprint(result.digests),
        **{f"sha256.{path.as_posix()}": digest for path, digest in result.digests.items()},
    }
    if not patch and "DVC_EXP_NAME" not in tags:
        tags["baseline"] = "true"  # the commit as it is, which experiments are compared with
    with marker() as name:
        with one_line_errors(f"MLflow did not take the run of {result.model}"):
            client = connect()
            experiment_id = experiment(client, result.params, result.model)
            finished = recover_interrupted_runs(client, tags)
            if not finished:
                same = f"tags.fingerprint = '{tags['fingerprint']}'"
                same += " and attributes.status = 'FINISHED'"
                first = ["attributes.start_time ASC"]
                for run in client.search_runs([experiment_id], same, order_by=first, max_results=1):
                    tags["reproduces"] = run.info.run_id
                with _run(client, experiment_id, tags | {MARKER: name}) as run_id:
                    _log(client, run_id, result, patch)
        yield
        for path in finished:
            path.unlink(missing_ok=True)


def _log(client: mlflow.MlflowClient, run_id: str, result: Result, patch: bytes) -> None:
    """Log all that the run holds."""
    text = description.describe(result.model, result.params, result.history, result.metrics, run_id)
    client.set_tag(run_id, MLFLOW_RUN_NOTE, text)
    # MLflow draws metrics of a single step as bars: those of the test, and the best ones.
    best = description.best_epoch(result.history)
    final = {**result.metrics, "epochs_to_best": best["epoch"]}
    final |= {f"best_{key}": value for key, value in best.items() if key.startswith("validation")}
    _log_training(client, run_id, result.model, result.params, [*result.history, final], patch)
    for file, figure in result.figures.items():
        if layout := figure.get_layout_engine():  # with it, MLflow would draw the figure twice
            layout.execute(figure)
            figure.set_layout_engine(None)
        # Not in a folder, where MLflow's page that compares would not find them.
        client.log_figure(run_id, figure, file)
    for path, digest in result.digests.items():
        if path.parts[0] == "data":
            # MLflow keeps 36 characters of a digest; the tags hold all 64.
            source = CodeDatasetSource({"path": path.as_posix()})
            dataset = MetaDataset(  # type: ignore[abstract]  # as it is documented
                source, name=path.parent.name, digest=digest[:32]
            )
            log_data(dataset, path.stem)
        elif path.suffix == ".safetensors":
            log_model(client, run_id, path, result.shape)
        else:
            client.log_artifact(run_id, str(path))


def log_data(data: MetaDataset, context: str) -> None:
    """Log a data set that the run has used.

    MLflow creates what it does not find, without a lock. Where another process has just created the
    same, PostgreSQL refuses the second; then it is found.
    """
    try:
        mlflow.log_input(data, context=context)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        mlflow.log_input(data, context=context)


def record_failure(
    model: str, params: Params, history: Sequence[Mapping[str, float]], why: str
) -> None:
    """Record a training that failed as a FAILED run. Raises InputError where the store fails."""
    origin, patch = _origin()
    tags = origin | {"failure": why, MLFLOW_RUN_NOTE: why}
    with marker() as name, one_line_errors(f"MLflow did not take the failed run of {model}"):
        client = connect()
        experiment_id = experiment(client, params, model)
        with _run(client, experiment_id, tags | {MARKER: name}) as run_id:
            _log_training(client, run_id, model, params, history, patch)
            mlflow.end_run("FAILED")


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


def _log_training(
    client: mlflow.MlflowClient,
    run_id: str,
    model: str,
    params: Params,
    history: Sequence[Mapping[str, float | None]],
    patch: bytes,
) -> None:
    """Log parameters, patch, and the metrics of each row with its epoch as step, or 0."""
    now = int(1000 * time.time())
    metrics = [
        Metric(key, value, now, int(row.get("epoch") or 0))
        for row in history
        for key, value in row.items()
        if key != "epoch" and value is not None
    ]
    settings = description.plain(params.flat(model))
    client.log_batch(run_id, params=[Param(key, value) for key, value in settings.items()])
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    client.log_artifact(run_id, "params.yaml")
    if patch:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "changes.patch")
            path.write_bytes(patch)
            client.log_artifact(run_id, str(path))


def fingerprint(digests: Mapping[Path, str]) -> str:
    """One digest of many files: of the lines that `sha256sum` prints, sorted by path."""
    lines = sorted((path.as_posix(), digest) for path, digest in digests.items())
    text = "".join(f"{digest}  {path}\n" for path, digest in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def _origin() -> tuple[dict[str, str], bytes]:
    """Where a run comes from: commit, experiment of DVC, libraries and platform; and the patch."""
    commit, patch = repository.state()
    libraries = ("dvc", "mlflow", "pandas", "safetensors", "torch")
    return {
        "git.commit": commit,
        "git.dirty": str(bool(patch)).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": SOURCE,
        **repository.dvc_experiment(),
        **{f"version.{name}": importlib.metadata.version(name) for name in libraries},
        "version.python": platform.python_version(),
        "platform": platform.platform(),
    }, patch
