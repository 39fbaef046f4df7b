"""A run in MLflow: what is recorded of a result, and of a training that failed.

A run's parameters, tags and artifacts say nothing of the user's machine but its
platform: no path, no user name. MLflow itself adds one path: where the artifacts of a
local store are.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from lab.networks import Shape
from lab.schema import Params
from tracking import description, repository
from tracking.packaging import SOURCE, log_model
from tracking.recovery import MARKER, marker, recover_interrupted_runs
from tracking.store import connect, experiment, milliseconds, one_line_errors


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run holds.

    `history` has a row per epoch; `metrics` are those of the test set; `digests` are the sha256
    of the files that make up the result, data included; `figures` are by file name.
    """

    model: str
    params: Params
    shape: Shape
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float | None]
    digests: Mapping[Path, str]
    figures: Mapping[str, Figure]

    def files(self, folder: str) -> list[Path]:
        """The files of the result in data/ or results/."""
        return [path for path in self.digests if path.parts[0] == folder]


@contextlib.contextmanager
def recorded(result: Result) -> Iterator[None]:
    """Record one result as a run of the model's experiment, then run the block.

    Only where the block ends well does the run count as recorded: after a process that was
    killed in between, the next one finds the run and makes no second. Raises InputError where
    the store fails.
    """
    commit, patch = repository.state()
    tags = _origin_tags(commit, patch) | {
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
                if first := _first_with(client, experiment_id, tags["fingerprint"]):
                    tags["reproduces"] = first
                with _run(client, experiment_id, tags | {MARKER: name}) as run_id:
                    _log(client, run_id, result, patch)
        yield
        for path in finished:
            path.unlink(missing_ok=True)


def _log(client: mlflow.MlflowClient, run_id: str, result: Result, patch: bytes) -> None:
    """Log all that the run holds."""
    text = description.describe(result.model, result.params, result.history, result.metrics, run_id)
    client.set_tag(run_id, MLFLOW_RUN_NOTE, text)
    rows = [*result.history, _final(result.history, result.metrics)]
    _log_values(client, run_id, result.params.flat(result.model), rows)
    for file, figure in result.figures.items():
        # Not in a folder, where MLflow's page that compares would not find them.
        client.log_figure(run_id, figure, file)
    for path in result.files("results"):
        if path.suffix == ".safetensors":
            log_model(client, run_id, path, result.shape)
        else:
            client.log_artifact(run_id, str(path))
    client.log_artifact(run_id, "params.yaml")
    _log_patch(client, run_id, patch)
    for path in result.files("data"):
        # MLflow keeps 36 characters of a digest; the tags hold all 64.
        source = CodeDatasetSource({"path": path.as_posix()})
        dataset = MetaDataset(  # type: ignore[abstract]  # as it is documented
            source, name=path.parent.name, digest=result.digests[path][:32]
        )
        mlflow.log_input(dataset, context=path.stem)


class _FailedError(Exception):
    """Ends a run as FAILED."""


def record_failure(
    model: str, params: Params, history: Sequence[Mapping[str, float]], why: str
) -> None:
    """Record a training that failed as a FAILED run, with its history up to there.

    Raises InputError where the store fails.
    """
    commit, patch = repository.state()
    tags = _origin_tags(commit, patch) | {"failure": why, MLFLOW_RUN_NOTE: why}
    with marker() as name, one_line_errors(f"MLflow did not take the failed run of {model}"):
        client = connect()
        experiment_id = experiment(client, params, model)
        with (
            contextlib.suppress(_FailedError),
            _run(client, experiment_id, tags | {MARKER: name}) as run_id,
        ):
            _log_values(client, run_id, params.flat(model), history)
            client.log_artifact(run_id, "params.yaml")
            _log_patch(client, run_id, patch)
            raise _FailedError


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
    now = milliseconds()
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
    best = description.best_epoch(history)
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
    """Where a run comes from: commit, environment, and what DVC says of the experiment."""
    return {
        "git.commit": commit,
        "git.dirty": str(bool(patch)).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": SOURCE,
        **repository.dvc_experiment(),
        **_environment_tags(),
    }


def _environment_tags() -> dict[str, str]:
    """The libraries and the platform that the result should not depend on."""
    libraries = ("dvc", "mlflow", "pandas", "safetensors", "torch")
    versions = {f"version.{name}": importlib.metadata.version(name) for name in libraries}
    return versions | {"version.python": platform.python_version(), "platform": platform.platform()}
