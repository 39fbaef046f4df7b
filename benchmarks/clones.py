"""A fresh clone of this repository, to run in it as a new user would."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """This process's, less what DVC, MLflow and git set, and with its own Python first on PATH."""
    foreign = ("DVC_", "MLFLOW_", "GIT_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}


def clone(folder: Path) -> None:
    """Clone what is committed into the folder."""
    command = ["git", "clone", "--quiet", str(ROOT), str(folder)]
    subprocess.run(command, check=True, env=environment())
