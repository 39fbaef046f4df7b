"""Real servers for the tests, and processes that record at the same time."""

import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import stages
from lab import files, repository
from tests.conftest import Clone

# The package of its clients has no initdb.
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
# Forks processes that need not load PyTorch and MLflow, which takes seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["stages.record", "stages.train", __name__])


@contextlib.contextmanager
def running(
    command: list[str], ready: Callable[[], bool], folder: Path, user: str | None = None
) -> Iterator[None]:
    """A server that is ready. At the end, all processes that it started are ended."""
    log = folder / "server.log"
    environment = repository.environment() | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True,
            user=user, group=user, extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        # On SIGTERM, PostgreSQL would wait until its clients leave.
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The address of a new, empty database, which is removed afterwards."""
    if not POSTGRESQL:
        pytest.skip("PostgreSQL is not installed (on Debian: apt install postgresql)")
    programs = POSTGRESQL[-1].parent
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    # Not one of pytest's folders: other users cannot enter those.
    with tempfile.TemporaryDirectory() as home:
        if user:
            shutil.chown(home, user)
        subprocess.run(
            [str(programs / "initdb"), "--pgdata=data", "--username=mlflow", "--auth=trust",
             "--no-locale", "--encoding=UTF8", "--no-sync"],
            cwd=home, user=user, group=user, extra_groups=[] if user else None,
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        # A socket in a folder of its own needs no port and lets nobody else in.
        server = [str(programs / "postgres"), "-D", "data", "-k", home, "-h", "", "-F"]
        ask = [str(programs / "pg_isready"), "--quiet", "--host", home]
        with running(server, lambda: not subprocess.run(ask).returncode, Path(home), user):
            # Without the driver's name SQLAlchemy 2.1 wants psycopg 3.
            yield f"postgresql://mlflow@/postgres?host={home}"


def healthy(address: str) -> bool:
    """Whether an MLflow server answers there."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=10) as answer:
            return bool(answer.read() == b"OK")
    except OSError:
        return False


@contextlib.contextmanager
def mlflow_server(kind: str, folder: Path) -> Iterator[str]:
    """The address of an MLflow server without any runs."""
    sqlite = contextlib.nullcontext(f"sqlite:///{folder}/mlflow.db")
    with postgresql() if kind == "postgresql" else sqlite as store:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
                   "--workers", "1", "--backend-store-uri", store,
                   "--serve-artifacts", "--artifacts-destination", f"{folder}/served"]  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        with running(command, lambda: healthy(address), folder):
            yield address


def server_settings(address: str) -> dict[str, str]:
    """The address as a user sets it, and more patience than the default for a busy machine."""
    return {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1000"}


def runs(store: str, model: str) -> list[Run]:
    """The model's runs in a store, oldest first."""
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(model)
    ids = [experiment.experiment_id] if experiment else []
    return list(client.search_runs(ids, order_by=["start_time ASC"])) if ids else []


def require_every_metric(store: str, run: Run) -> None:
    """The run's metrics, epoch by epoch, are those of the tables among its artifacts."""
    client = MlflowClient(tracking_uri=store)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("history.csv", "metrics.json"):
            client.download_artifacts(run.info.run_id, name, folder)
        rows = files.read_csv(Path(folder, "history.csv"))
        results = files.read_json(Path(folder, "metrics.json"))
    assert len(rows) == int(run.data.params["epochs"])
    for key in rows[0].keys() - {"epoch"}:
        logged = client.get_metric_history(run.info.run_id, key)
        expected = [(row["epoch"], row[key]) for row in rows]
        assert sorted((metric.step, metric.value) for metric in logged) == expected
    assert results.items() <= run.data.metrics.items()


def copies(finished: Clone, parent: Path, number: int) -> list[Path]:
    """Copies of what recording linear_regression needs. In one folder, recorders would queue."""
    ignore = shutil.ignore_patterns(
        "mlflow.db*", "mlartifacts", "tmp", "cache", "fashion_mnist", "softmax*", "mlp"
    )
    return [
        Path(shutil.copytree(finished.folder, parent / f"{n}", symlinks=True, ignore=ignore))
        for n in range(number)
    ]


class Stage:
    """A stage in a process of its own: what `python -m stages.record mlp` does, but forked."""

    def __init__(self, folder: Path, *command: str, **environment: str) -> None:
        self.stderr = folder / f".dvc/tmp/stderr.{uuid.uuid4()}"
        self.process = FORKS.Process(target=_run, args=(folder, self.stderr, command, environment))
        self.process.start()

    def end(self) -> tuple[int | None, str]:
        """Wait for the exit code and what it printed as errors."""
        self.process.join()
        return self.process.exitcode, self.stderr.read_text()


def _run(folder: Path, stderr: Path, command: tuple[str, ...], environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    stderr.parent.mkdir(parents=True, exist_ok=True)
    with stderr.open("wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = list(command)
    stages.run(importlib.import_module(f"stages.{command[0]}").main)
