"""Real servers for the tests, and processes that record at the same time."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lab import params
from lab.common import files
from tests.conftest import Clone
from tools import ui
from tracking import repository

MODELS = tuple(params.load(repository.ROOT / "tests/params.yaml").models)
BUCKET = "our-bucket"  # in docs/sharing.md
# The package of its clients has no initdb.
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@contextlib.contextmanager
def running(
    command: list[str],
    ready: Callable[[], bool],
    folder: Path,
    settings: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ready. At the end, all processes that it started are ended.

    The settings are added to its environment; the options are those of Popen.
    """
    log = folder / f"{Path(command[0]).name}.log"
    environment = Clone(folder, folder).environment | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes
        **(settings or {}),
    }
    with log.open("wb") as output:
        options |= {"cwd": folder, "env": environment, "start_new_session": True}
        options |= {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, stdout=output, **options)
    try:
        deadline = time.monotonic() + 300
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process
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
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    # Not one of pytest's folders: other users cannot enter those.
    with tempfile.TemporaryDirectory() as home:
        if user:
            shutil.chown(home, user["user"])
        init = [str(programs / "initdb"), "-D", "data", "-U", "mlflow", "-A", "trust", "-E", "UTF8"]
        init += ["--no-locale", "--no-sync"]
        subprocess.run(init, cwd=home, check=True, stdout=subprocess.DEVNULL, **user)
        # A socket in a folder of its own needs no port and lets nobody else in.
        server = [str(programs / "postgres"), "-D", "data", "-k", home, "-h", "", "-F"]
        ask = [str(programs / "pg_isready"), "--quiet", "--host", home]
        with running(server, lambda: not subprocess.run(ask).returncode, Path(home), **user):
            # Without the driver's name SQLAlchemy 2.1 wants psycopg 3.
            yield f"postgresql://mlflow@/postgres?host={home}"


@contextlib.contextmanager
def mlflow_server(kind: str, folder: Path, artifacts: str = "", **settings: str) -> Iterator[str]:
    """The address of an MLflow server without any runs.

    Its artifacts are in the folder, or where `artifacts` says. The settings are its environment.
    """
    sqlite = contextlib.nullcontext(f"sqlite:///{folder}/mlflow.db")
    with postgresql() if kind == "postgresql" else sqlite as store:
        port = free_port()
        command = ["mlflow", "server", "--port", str(port), "--workers", "1", "--serve-artifacts"]
        command += ["--backend-store-uri", store]
        command += ["--artifacts-destination", artifacts or f"{folder}/served"]
        address = f"http://127.0.0.1:{port}"
        with running(command, lambda: ui.answers(address), folder, settings):
            yield address


@contextlib.contextmanager
def s3_server(folder: Path, key: str, secret: str, port: int = 0) -> Iterator[str]:
    """The address of an S3 server that keeps the objects of each bucket in a folder of its name."""
    port = port or free_port()
    command = ["rclone", "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    settings = {"RCLONE_AUTH_KEY": f'"{key},{secret}"', "RCLONE_CONFIG": os.devnull}
    with running(command, lambda: listens(port), folder.parent, settings):
        yield f"http://127.0.0.1:{port}"


def remote_commands(kind: str, **places: str) -> list[list[str]]:
    """The commands of docs/sharing.md that set up a remote of this kind, at other places."""
    page = (repository.ROOT / "docs/sharing.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"<!-- remote: {kind} -->\n```sh\n(.*?)```", page, flags=re.DOTALL)
    for old, new in places.items():
        assert old in block
        block = block.replace(old, new)
    return [line.partition("  #")[0].split() for line in block.splitlines()]


def free_port() -> int:
    """A port of this machine that no program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    """Whether a program listens on the port of this machine."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


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
        for name in ("history.csv", "gradients.csv", "metrics.json"):
            client.download_artifacts(run.info.run_id, name, folder)
        rows = files.read_csv(Path(folder, "history.csv"))
        gradients = files.read_rows(Path(folder, "gradients.csv"))
        results = files.read_json(Path(folder, "metrics.json"))
    expected = defaultdict(list)
    for row in rows:
        for key in row.keys() - {"epoch"}:
            expected[key].append((row["epoch"], row[key]))
    for gradient in gradients:
        key = f"gradient_norm_{gradient['layer']}"
        expected[key].append((float(gradient["epoch"]), float(gradient["norm"])))
    assert len(rows) == int(run.data.params["epochs"]) and gradients
    for key, values in expected.items():
        logged = client.get_metric_history(run.info.run_id, key)
        assert sorted((metric.step, metric.value) for metric in logged) == values
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
        clone = Clone(folder, folder)
        clone.with_forks()
        name, *arguments = command
        self.process = subprocess.Popen(
            ["python", "-m", f"stages.{name}", *arguments],
            cwd=folder,
            env=clone.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Wait for the exit code and what it printed as errors."""
        _, errors = self.process.communicate()
        return self.process.returncode, errors
