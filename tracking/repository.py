"""The git repository: which commit this is, what the working tree adds, what a commit holds."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lab.common.commands import output
from lab.common.files import InputError
from lab.common.workspace import CODE

ROOT = Path(__file__).parent.parent
RECORDED = (*CODE, "tracking")  # the folders whose new files a patch has


def environment() -> dict[str, str]:
    """This process's, with its own Python first, and without DVC's, MLflow's and git's variables.

    For commands in another clone, which these variables would lead back to this one.
    """
    foreign = ("DVC_", "MLFLOW_", "GIT_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}


def git(*arguments: str, environment: Mapping[str, str] | None = None) -> bytes:
    """What git prints. Raises InputError, with git's own reason, where it fails."""
    return output(["git", *arguments], environment=environment)


def head() -> str:
    """The id of the commit that is checked out. Raises InputError where there is none."""
    return git("rev-parse", "HEAD").decode().strip()


def clone(folder: Path) -> None:
    """Clone what is committed of this repository into the folder."""
    git("clone", "--quiet", str(ROOT), str(folder), environment=environment())


def state() -> tuple[str, bytes]:
    """The commit, and as a patch what the working tree adds. Raises InputError without a commit.

    The patch has changes of tracked files and new files of code, but not what the pipeline writes.
    """
    commit = head()
    objects = Path(os.fsdecode(git("rev-parse", "--git-path", "objects")).rstrip("\n"))
    with tempfile.TemporaryDirectory() as folder:
        # An index and objects of our own, so that the user's repository stays as it is.
        aside = os.environ | {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects.absolute()),
            "GIT_OBJECT_DIRECTORY": folder,
        }
        git("read-tree", "HEAD", environment=aside)
        git("add", "--update", environment=aside)
        existing = [folder for folder in RECORDED if Path(folder).exists()]
        git("add", "--", *existing, environment=aside)
        # With nothing of the user's own settings in it, and without what the pipeline writes.
        plain = "--binary --no-ext-diff --no-textconv --no-color --src-prefix=a/ --dst-prefix=b/"
        paths = [".", ":!dvc.lock", ":!results"]
        patch = git("diff", "--cached", *plain.split(), "HEAD", "--", *paths, environment=aside)
    return commit, patch


def committed(commit: str, path: str) -> str | None:
    """The text of a file in a commit; None where either is missing."""
    try:
        return git("show", f"{commit}:{path}").decode(errors="replace")
    except InputError:
        return None


def dvc_experiment() -> dict[str, str]:
    """The experiment that DVC runs this process for, by the names of its variables; maybe empty."""
    names = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
    return {name: os.environ[name] for name in names if os.environ.get(name)}
