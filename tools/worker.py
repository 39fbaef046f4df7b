"""What a worker of a sweep does: one experiment by `dvc exp run`, in a clone of its own.

A worker is a process of Dask that was started in a checkout of this repository. It shares the
checkout's cache, so it trains nothing that any worker has trained before. It leaves the experiment
in the checkout, where `dvc exp show` finds it.
"""

import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path

from filelock import FileLock

from lab.common.commands import output
from lab.common.files import InputError
from lab.common.workspace import NOTES
from tracking import location, repository
from tracking.repository import ROOT

REMOTE = "origin"  # of git, by which machines share commits and experiments


@dataclasses.dataclass(frozen=True)
class Job:
    """An experiment. It names no path, address or key of a machine."""

    name: str
    commit: str
    patch: bytes  # what the user's working tree adds to the commit
    changes: tuple[str, ...]  # as after `dvc exp run -S`
    targets: tuple[str, ...]
    shared: bool  # whether workers are elsewhere, and share by git's and DVC's remote


def dask_setup(_: object) -> None:
    """Called by Dask in the workers of this machine: Ctrl-C is for the sweep, which ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def compute(job: Job) -> str:
    """Run the experiment; return why it failed, in one line, or nothing."""
    from distributed import get_worker

    clone = Path(get_worker().local_directory, "clone")
    environment = repository.environment() | {
        key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")
    }
    environment["MLFLOW_TRACKING_URI"] = location.store_uri()
    try:
        _check_out(job, clone, environment)
        words = [sys.executable, "-m", "tools.dvc", "exp", "run", "--name", job.name]
        words += [f"--set-param={change}" for change in job.changes]
        words += ["--pull"] * job.shared
        output([*words, *job.targets], clone, environment)
        made = ref(clone, job.name)
        if not ref(ROOT, job.name):  # another worker may have been faster
            _git(clone, "push", "--quiet", str(ROOT), f"{made}:{made}")
        if job.shared:
            push = ["dvc", "exp", "push", "--run-cache", REMOTE, job.name]
            with FileLock(ROOT / NOTES / "push.lock"):  # DVC waits seconds for another worker's
                output(push, ROOT, environment)
    except InputError as error:
        return str(error).removeprefix(f"{Path(sys.executable).name} -m: ")
    return ""


def _check_out(job: Job, clone: Path, environment: dict[str, str]) -> None:
    """The job's commit and patch, in a clone that shares objects and cache with the checkout."""
    try:
        _git(ROOT, "cat-file", "-e", f"{job.commit}^{{commit}}")
    except InputError:
        _git(ROOT, "fetch", "--quiet", REMOTE)
    if not clone.exists():
        from dvc.repo import Repo

        with Repo(str(ROOT)) as repo:
            cache = Path(repo.cache.local.path).parents[1]
        fresh = clone.with_name("fresh")  # a clone without this cache must not stay
        shutil.rmtree(fresh, ignore_errors=True)
        _git(ROOT, "clone", "--quiet", "--shared", ".", str(fresh))
        if (local := ROOT / ".dvc/config.local").exists():  # the user's keys, with its mode
            shutil.copy2(local, fresh / ".dvc")
        output(["dvc", "cache", "dir", "--local", cache], fresh, environment)
        fresh.rename(clone)
    _git(clone, "checkout", "--quiet", "--force", "--detach", job.commit)
    _git(clone, "clean", "--quiet", "--force", "-d")
    if old := ref(clone, job.name):  # of an attempt that failed on its way
        _git(clone, "update-ref", "-d", old)
    if job.patch:
        patch = clone / ".dvc/tmp/changes.patch"
        patch.parent.mkdir(exist_ok=True)
        patch.write_bytes(job.patch)
        _git(clone, "apply", "--index", "--whitespace=nowarn", str(patch))


def ref(repo: Path, name: str) -> str:
    """The reference of an experiment in a repository; nothing where it has none."""
    return _git(repo, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").strip()


def _git(repo: Path, *arguments: str) -> str:
    return output(["git", *arguments], repo, repository.environment()).decode()
