"""Finds recordings that a crash or a lost server interrupted, and marks them FAILED."""

import contextlib
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout

from lab.common import workspace
from tracking.location import store_uri

MARKER = "recording"  # the tag that names a run's marker file


@contextlib.contextmanager
def marker() -> Iterator[str]:
    """The name of a marker file for a run that is being recorded, locked while this process lives.

    The file stays where the block does not end well: then the run may be half written.
    """
    name = uuid.uuid4().hex
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        # Non-empty: `recover_interrupted_runs` may recreate a deleted marker, which is empty then.
        path.write_text(name)
        yield name
        path.unlink(missing_ok=True)


def recover_interrupted_runs(client: mlflow.MlflowClient, tags: Mapping[str, str]) -> list[Path]:
    """Mark runs of crashed recorders FAILED; return the markers of finished runs with these tags.

    The caller deletes them. Markers of other finished runs stay for the recorder of their result.
    """
    finished = []
    for path in _folder().iterdir():
        # A process that is still recording has the lock.
        with contextlib.suppress(Timeout), FileLock(path, timeout=0):
            ids = [experiment.experiment_id for experiment in client.search_experiments()]
            marked = f"tags.{MARKER} = '{path.name}'"
            runs = client.search_runs(ids, marked) if path.stat().st_size else []
            for run in runs:
                if run.info.status == "RUNNING":
                    client.set_tag(run.info.run_id, "failure", "the recorder did not finish")
                    client.set_terminated(run.info.run_id, "FAILED")
            if not any(run.info.status == "FINISHED" for run in runs):
                path.unlink()
            elif any(tags.items() <= run.data.tags.items() for run in runs):
                finished.append(path)
    return finished


def _folder() -> Path:
    """The folder of the marker files, one for each store."""
    store = hashlib.sha256(store_uri().encode()).hexdigest()[:16]
    return workspace.main_root() / workspace.NOTES / "recording" / store
