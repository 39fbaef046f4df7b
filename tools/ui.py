"""Show the recorded runs in MLflow, on this machine only.

    make ui            # or: python -m tools.ui, at http://127.0.0.1:5000
    make ui PORT=5001

Prints a link to each model's runs. MLflow's own first page is that for language models.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import requests

from lab import params
from lab.common.files import InputError
from stages import command
from tracking import location, store

if TYPE_CHECKING:
    from mlflow import MlflowClient


def main() -> None:
    """Serve the local store until interrupted, or point to the server that has the runs."""
    parser = argparse.ArgumentParser(description="Show the recorded runs in MLflow.")
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args().port
    uri = location.store_uri()
    with store.one_line_errors("MLflow does not give the experiments"):
        tables = links(store.connect(create=False))
    if uri.startswith("http"):
        show(uri.rstrip("/"), tables)
        return
    require_free(port)
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: it may hold a password
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # several processes for language models
    }
    serve = ["mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    server = subprocess.Popen(serve, env=os.environ | settings)
    try:
        address = f"http://127.0.0.1:{port}"
        while server.poll() is None and not answers(address):
            time.sleep(0.2)
        if server.poll() is None:
            show(address, tables)
        sys.exit(server.wait())
    finally:
        server.terminate()
        server.wait()


def links(client: "MlflowClient") -> dict[str, str]:
    """For each model with an experiment, the path of its page."""
    found = {
        experiment.name: experiment.experiment_id for experiment in client.search_experiments()
    }
    return {
        entry.title: f"/#/experiments/{found[model]}/runs?viewStateShareKey={store.VIEW}"
        for model, entry in params.load().models.items()
        if model in found
    }


def show(address: str, tables: dict[str, str]) -> None:
    """Print where the runs are."""
    print(f"\nMLflow: {address}")
    for title, path in tables.items():
        print(f"  {title:23} {address}{path}")
    sys.stdout.flush()


def require_free(port: int) -> None:
    """Raise InputError where another program has the port, or there is no such port."""
    try:
        if not port:
            raise OverflowError("expected a number from 1 to 65535")
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} cannot be used ({error}): make ui PORT=5001") from error


def answers(address: str) -> bool:
    """Whether the server is ready."""
    try:
        return requests.get(f"{address}/health", timeout=10).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    command(main)
