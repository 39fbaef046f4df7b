"""Runs experiments on a cluster of Dask: the cores of this machine, or many machines.

An experiment is a pure function of commit and parameters. So any worker may run any of them, and
twice if need be.
"""

import contextlib
import functools
import hashlib
import ipaddress
import logging
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from tqdm import tqdm

from lab import params
from lab.common.commands import output
from lab.common.files import InputError, one_line
from lab.schema import Params
from tools.worker import REMOTE, Job, compute, ref
from tracking import repository
from tracking.repository import ROOT

# Each worker of this machine loads this module, too. It must not wait for MLflow and pandas.
if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

NAME = "tags.DVC_EXP_NAME"  # of a run, the name of its experiment


class Sweep:
    """Runs experiments, on the cluster at the address or on a local one that `stack` closes."""

    def __init__(self, address: str | None, workers: int, stack: contextlib.ExitStack) -> None:
        self.address, self.workers, self.stack = address, workers, stack
        self.failures: dict[str, str] = {}  # why experiments failed, by their names

    @functools.cached_property
    def code(self) -> tuple[str, bytes]:
        """The commit and the uncommitted changes, for all experiments those of the first one.

        Raises InputError where a cluster's workers could not get the commit.
        """
        commit, patch = repository.state()
        if self.address and not repository.git(
            "branch", "--remotes", "--list", f"{REMOTE}/*", "--contains", commit
        ):
            raise InputError(f"commit {commit[:7]} is not in {REMOTE}: push it first")
        return commit, patch

    @functools.cached_property
    def client(self) -> "Client":
        """Dask's, connected when first needed. Raises InputError where no scheduler answers."""
        import dask
        from distributed import Client, LocalCluster

        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # told in one line
        if self.address:
            try:
                return cast("Client", self.stack.enter_context(Client(self.address, timeout=10)))
            except (OSError, TypeError, ValueError) as error:  # TLS without certificates, too
                why = one_line(error)
                raise InputError(f"{self.address}: no scheduler can be used: {why}") from error
        # A worker gets an experiment when it has none, so that none waits behind a long one.
        dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
        # Not within the checkout: Dask removes the clone of a killed worker, whose DVC still runs
        # for a moment. There, git would look further up and find the user's repository.
        folder = self.stack.enter_context(
            tempfile.TemporaryDirectory(prefix="sweep-", ignore_cleanup_errors=True)
        )
        local = LocalCluster(
            host="127.0.0.1",
            n_workers=self.workers,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address=None,
            worker_dashboard_address=None,
            local_directory=folder,
            silence_logs="CRITICAL",
            preload=[compute.__module__],
        )
        return cast("Client", self.stack.enter_context(Client(self.stack.enter_context(local))))

    def jobs(self, combinations: Iterable[Sequence[str]], targets: Sequence[str]) -> list[Job]:
        """An experiment for each combination, with a name made of all that decides its results.

        Raises InputError as `code` does.
        """
        jobs = []
        for changes in combinations:
            # In their order: mlp.optimizer={…} undoes an mlp.optimizer.momentum=… before it.
            id_ = digest(*self.code, *changes, "", *sorted(targets))
            readable = re.sub(r"[^\w.]+|\.(?!\d)", "-", " ".join(sorted(changes))).strip("-.")[:40]
            name, shared = f"{readable}-{id_}", bool(self.address)
            jobs.append(Job(name, *self.code, tuple(changes), tuple(targets), shared))
        return jobs

    def run(self, jobs: Sequence[Job]) -> "pd.DataFrame":
        """Run the experiments that are not known, and return the finished runs of all.

        Dask gives an experiment whose worker died to another one, up to three times. Raises
        InputError where two workers have got different bytes.
        """
        refs = repository.git("for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
        known = {ref.rpartition("/")[2] for ref in refs}
        names = {job.name: job for job in jobs}
        missing = [job for name, job in names.items() if name not in known]
        done = len(names) - len(missing)
        if done:
            print(f"{done} of {len(names)} experiments are known", file=sys.stderr)
        if missing:
            from distributed import as_completed
            from distributed.client import FutureCancelledError

            submit = functools.partial(self.client.submit, compute, pure=False)
            futures = {submit(job, key=job.name): job for job in missing}
            if not self.client.nthreads():
                print("waiting for a worker to join the cluster", file=sys.stderr)
            with tqdm(total=len(names), initial=done, unit="experiment", disable=None) as bar:
                try:
                    for future in as_completed(list(futures)):
                        job = futures[future]
                        error = future.exception()
                        if "deserialization" in str(error):
                            raise InputError(
                                f"{self.address}: the scheduler and its workers must be started in"
                                " clones of this repository, with its environment"
                            )
                        why = one_line(error) if error else future.result()
                        if why := why or fetch(job):
                            self.failures[job.name] = why
                        bar.update()
                except FutureCancelledError as error:
                    raise InputError(
                        "the connection to the scheduler was lost: the same command goes on"
                    ) from error
        from tracking import store

        with store.one_line_errors("MLflow does not give the runs"):
            return deduplicate(jobs)


def expand(settings: Sequence[str]) -> list[list[str]]:
    """All combinations of the parameters' values, each as changes for `dvc exp run -S`.

    Raises InputError for what is no parameter, no list of values, or no valid value.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import get_hydra_sweeps
    from hydra.errors import HydraException

    try:
        overrides = to_path_overrides(settings)
        sweeps = get_hydra_sweeps(overrides)
    except (DvcException, HydraException, ValueError) as error:
        raise InputError(
            f"-S {' '.join(settings)}: expected NAME=VALUES, as lr=0.1,0.3 or seed=range(1,6)"
        ) from error
    if set(overrides) != {"params.yaml"}:
        raise InputError(f"{', '.join(overrides)}: expected parameters of params.yaml")
    combinations = [sweep["params.yaml"] for sweep in sweeps]
    for changes in combinations:
        changed(changes)
    return combinations


def changed(changes: Sequence[str]) -> Params:
    """The parameters of params.yaml with these changes. Raises InputError for a wrong one."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_bytes(params.PATH.read_bytes())
        try:
            apply_overrides(path, list(changes))
            return params.load(path)
        except InputError as error:
            why = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{' '.join(changes)}: {why}") from error
        except DvcException as error:
            raise InputError(f"{' '.join(changes)}: no parameter of params.yaml") from error


def require_private(address: str, insecure: bool) -> None:
    """Raise InputError for an address of another machine without TLS, unless that was asked for."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
        if parts.scheme not in ("tcp", "tls") or not host:
            raise ValueError
    except ValueError as error:
        expected = "expected the address of a scheduler, as tls://host:8786"
        raise InputError(f"{address}: {expected}") from error
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if parts.scheme == "tcp" and not here and not insecure:
        raise InputError(
            f"{address}: without TLS anybody in the network can run code on all machines: use"
            " tls:// with certificates (docs/sweeps.md), or say --insecure"
        )


def require_stages(targets: Iterable[str]) -> None:
    """Raise InputError for what is no stage."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        for target in targets:
            try:
                repo.stage.collect(target)
            except DvcException as error:
                why = one_line(error)
                raise InputError(f"{target}: expected a stage of dvc.yaml ({why})") from error


def digest(*parts: str | bytes) -> str:
    """Ten hexadecimal digits of a sha256 over the parts, in their order."""
    lines = (part if isinstance(part, str) else hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:10]


def fetch(job: Job) -> str:
    """Get an experiment from the remotes, where a worker elsewhere has left it.

    Return why that failed, in one line, or nothing.
    """
    try:
        if job.shared and not ref(ROOT, job.name):
            output(["dvc", "exp", "pull", REMOTE, job.name], ROOT, repository.environment())
    except InputError as error:
        return str(error)
    return ""


def deduplicate(jobs: Sequence[Job]) -> "pd.DataFrame":
    """Leave one finished run of each experiment and model in MLflow's store, and return these.

    A worker that was killed can have left a run that nobody ends, or one that another worker
    records again. Raises InputError where two workers have got different bytes.
    """
    from tools import compare
    from tracking import store

    client = store.connect()
    names = {job.name for job in jobs}
    ids = [found.experiment_id for found in client.search_experiments()]
    for run in client.search_runs(ids, "attributes.status = 'RUNNING'"):
        if run.data.tags.get(NAME.removeprefix("tags.")) in names:
            client.set_terminated(run.info.run_id, "FAILED")
    runs = compare.finished(list(params.load().models))
    runs = runs.reindex(columns=runs.columns.union([NAME, "model", "run_id"]))
    runs = runs[runs[NAME].isin(names)]
    duplicates, mismatches = [], []
    for (name, model), group in runs.groupby([NAME, "model"]):
        first, *others = group.sort_values("start_time").to_dict("records")
        for other in others:
            if other["tags.fingerprint"] == first["tags.fingerprint"]:
                duplicates.append(other["run_id"])
            else:
                platforms = f"{first['tags.platform']} and {other['tags.platform']}"
                mismatches.append(f"{name}: {model} has different bytes on {platforms}")
    for run_id in duplicates:
        client.delete_run(run_id)
    if mismatches:
        raise InputError("; ".join(mismatches))
    return runs[~runs["run_id"].isin(duplicates)]
