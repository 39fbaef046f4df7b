"""A fresh clone of this repository, to run in it as a new user would."""

import subprocess
from pathlib import Path

from lab import repository

ROOT = Path(__file__).parent.parent


def clone(folder: Path) -> None:
    """Clone what is committed into the folder."""
    command = ["git", "clone", "--quiet", str(ROOT), str(folder)]
    subprocess.run(command, check=True, env=repository.environment())
