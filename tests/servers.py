"""Real servers for the tests: MLflow's, over sqlite or PostgreSQL."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lab import repository


@contextlib.contextmanager
def running(
    command: list[str], ready: Callable[[], bool], folder: Path, user: str | None = None
) -> Iterator[None]:
    """A server that is ready, and gone afterwards with all the processes that it started."""
    log = folder / "server.log"
    environment = repository.environment() | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes more, for nothing here
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
        # PostgreSQL, asked by SIGTERM, would wait until its clients leave.
        for wish in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, wish)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The address of a new, empty database, which is removed afterwards."""
    # The clients alone, which are another package, have no initdb.
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found:
        pytest.skip("PostgreSQL is not installed (on Debian: apt install postgresql)")
    programs = max(found, key=lambda path: int(path.parent.name))
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
    with contextlib.ExitStack() as stack:
        store = (
            f"sqlite:///{folder}/mlflow.db"
            if kind == "sqlite"
            else stack.enter_context(postgresql())
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
                   "--workers", "2", "--backend-store-uri", store,
                   "--serve-artifacts", "--artifacts-destination", f"{folder}/served"]  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        stack.enter_context(running(command, lambda: healthy(address), folder))
        yield address


def runs(address: str, model: str) -> list[Run]:
    """The model's runs on the server, oldest first."""
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(model)
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))
