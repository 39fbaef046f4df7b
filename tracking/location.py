"""Where MLflow's store is. Needs no MLflow, which takes seconds to load."""

import os
from pathlib import Path

from lab.common import workspace
from lab.common.files import InputError

SQLITE = "sqlite:///"


def store_uri() -> str:
    """The address or path of the store. Raises InputError as `database` does."""
    path = database()
    return f"{SQLITE}{path}" if path else os.environ["MLFLOW_TRACKING_URI"]


def database() -> Path | None:
    """The file of a sqlite store, by default mlflow.db in the main repository; None for a server.

    Raises InputError for any other store, and for a file that cannot be used.
    A relative path counts from the main repository: DVC deletes the folder of an experiment.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(("http://", "https://", "postgresql")):
        return None
    if not uri.startswith(SQLITE):
        raise InputError(
            f"MLFLOW_TRACKING_URI = {uri}: expected sqlite:///FILE or the address of a server"
        )
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


def without_password(uri: str) -> str:
    """The store's address or path, without a password."""
    return uri.rpartition("@")[2].removeprefix(SQLITE)
