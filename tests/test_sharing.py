"""Two clones that share git, an S3 server and an MLflow server alone, as docs/sharing.md says.

Alice computes, records and pushes. Bob pulls, compares, replays, promotes and serves. A sweep runs
on a cluster of further clones.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import requests
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.numpy import load_file

import exact
from lab.common import files
from stages import evaluate, train
from tests import servers
from tests.conftest import Clone, Program, contents
from tests.servers import BUCKET, MODELS, Stage, remote_commands
from tools import compare, promote

pytestmark = pytest.mark.slow
OUTPUTS = ("data/**/*", "results/**/*.safetensors", "results/**/*.csv", "results/**/metrics.json")
LINEAR, CLASSIFIER = "linear_regression", "softmax_regression"
EXPERIMENT = ("dvc", "exp", "run", "-S", f"{LINEAR}.epochs=2", f"train@{LINEAR}")
TRAINS = f"python -m stages.train {LINEAR}"
Started = AbstractContextManager[subprocess.Popen[bytes]]


class Team(NamedTuple):
    """Alice's clone, whose results are pushed and whose runs are on the server; and the servers."""

    alice: Clone
    s3: Path  # the folder in which the S3 server keeps the bucket
    settings: dict[str, str]  # the MLflow server, as a user sets it
    keys: dict[str, str]  # of the S3 server


@pytest.fixture(scope="module")
def team(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    (folder / "s3" / BUCKET).mkdir(parents=True)
    kind = "postgresql" if servers.POSTGRESQL else "sqlite"
    with servers.s3_server(folder / "s3", key, secret) as s3:
        of_server = keys | {"MLFLOW_S3_ENDPOINT_URL": s3}
        place = f"s3://{BUCKET}/mlflow"
        with servers.mlflow_server(kind, folder, place, **of_server) as address:
            settings = servers.server_settings(address)
            alice = finished.copy(folder / "alice")
            alice.forget_runs()
            for command in remote_commands("s3", **{"https://s3.example.org": s3}):
                alice.run(*command)
            alice.commit("share by the remote team")
            alice.run("git", "clone", "--quiet", "--bare", ".", "../origin")
            alice.run("git", "remote", "set-url", "origin", (folder / "origin").as_uri())
            recorders = [Stage(alice.folder, "record", model, **settings) for model in MODELS]
            assert [stage.end() for stage in recorders] == [(0, "")] * len(MODELS)
            alice.run("dvc", "push", **keys)
            alice.run(*EXPERIMENT, "--name", "longer")
            alice.run("dvc", "exp", "push", "--run-cache", "origin", "longer", **keys)
            alice.run("git", "checkout", "--quiet", ".")
            alice.run("dvc", "checkout", "--quiet")
            yield Team(alice, folder / "s3", settings, keys)
    # Neither key is in a clone, a log, a run or an object.
    everything = contents(folder)
    assert any(b"share by the remote team" in data for data in everything.values())  # it is read
    for path, data in everything.items():
        assert not any(value.encode() in data for value in (key, secret)), path


def clone_of(team: Team, folder: Path) -> Clone:
    """A clone of Alice's repository by somebody else, without data and results."""
    folder.mkdir(parents=True, exist_ok=True)
    clone = Clone(folder, team.alice.mirror)
    clone.run("git", "clone", "--quiet", (team.alice.folder / "../origin").resolve().as_uri(), ".")
    return clone


@pytest.fixture(scope="module")
def bob(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Another clone, which has pulled."""
    bob = clone_of(team, tmp_path_factory.mktemp("bob"))
    # Nothing is downloaded from elsewhere.
    bob.environment |= team.settings | {"FASHION_MNIST_MIRROR": str(bob.folder / "none")}
    bob.run("dvc", "pull", "--run-cache", **team.keys)
    return bob


def test_a_clone_that_pulls_has_all_results_and_trains_nothing(team: Team, bob: Clone) -> None:
    assert contents(bob.folder, *OUTPUTS) == contents(team.alice.folder, *OUTPUTS)
    printed = bob.run("dvc", "repro", *(f"evaluate@{model}" for model in MODELS))
    assert "Running stage" not in printed and printed.count("didn't change") == 8
    assert bob.run("git", "status", "--porcelain") == ""

    printed = bob.run(*EXPERIMENT, "--pull", **team.keys)
    assert "is cached - skipping run" in printed and TRAINS not in printed
    assert len(files.read_csv(bob.folder / f"results/{LINEAR}/history.csv")) == 2
    bob.run("git", "checkout", "--quiet", ".")
    bob.run("dvc", "checkout", "--quiet")


def test_a_public_remote_needs_no_key_and_has_no_run_cache(team: Team, tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=team.s3 / BUCKET)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    carol = clone_of(team, tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            for command in remote_commands("http", **{"https://data.example.org": address}):
                carol.run(*command)
            carol.run("dvc", "pull")
        finally:
            server.shutdown()
    assert contents(carol.folder, *OUTPUTS) == contents(team.alice.folder, *OUTPUTS)
    assert TRAINS in carol.run(*EXPERIMENT)  # without the run-cache


def features(model: str) -> np.ndarray:
    """The first test examples as the model takes them."""
    if model == LINEAR:
        path = "data/regression_data/test.csv"
        return np.loadtxt(path, np.float32, delimiter=",", skiprows=1)[:50, :-1]
    images = load_file("data/fashion_mnist/test.safetensors")["images"][:50]
    return images[:, None].astype(np.float32) / 256


@pytest.mark.sample(1)
@pytest.mark.parametrize("model", [LINEAR, "mlp"])
def test_the_run_of_another_is_compared_promoted_and_served(
    team: Team,
    bob: Clone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Program,
    model: str,
) -> None:
    monkeypatch.chdir(bob.folder)
    for name, value in team.settings.items():
        monkeypatch.setenv(name, value)
    address = team.settings["MLFLOW_TRACKING_URI"]
    (run,) = servers.runs(address, model)
    table = in_process(compare, model, "--csv")
    assert run.data.tags["fingerprint"][:10] in table.stdout, table.stderr

    done = in_process(promote, run.info.run_id[:12])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{model} version 1 is the champion: validation_" in done.stdout
    version = MlflowClient(address).get_model_version_by_alias(model, "champion")
    assert version.run_id == run.info.run_id
    assert version.tags["replayed"].startswith("identical on ")
    measure = version.tags["compared_by"]
    assert float(version.tags[measure]) == run.data.metrics[measure]

    port = servers.free_port()
    serve = re.sub("^.*mlflow models", "mlflow models", done.stdout.splitlines()[-1]).split()
    url = f"http://127.0.0.1:{port}"
    with servers.running(
        [*serve, "--port", str(port)],
        lambda: servers.listens(port) and requests.get(f"{url}/health", timeout=60).ok,
        tmp_path,
        team.settings | {"TMPDIR": str(tmp_path)},
    ):
        body = json.dumps({"inputs": features(model).tolist()})
        answer = requests.post(
            f"{url}/invocations", body, headers={"Content-Type": "application/json"}, timeout=100
        )
    outputs = torch.tensor(answer.json()["predictions"])
    rows = files.read_rows(Path("results", model, "predictions.csv"))[: len(outputs)]
    if model == LINEAR:
        assert outputs[:, 0].tolist() == [float(row["predicted"]) for row in rows]
    else:
        with exact.mode():
            assert outputs.softmax(1).amax(1).tolist() == [float(r["probability"]) for r in rows]
    assert not os.environ.get("AWS_ACCESS_KEY_ID")  # only the servers had the keys


def cluster_program(name: str, folder: Path, *arguments: str, **settings: str) -> Started:
    """A scheduler or worker of Dask, started in the folder as docs/sweeps.md says."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments, "--no-dashboard"]
    return servers.running(command, lambda: True, folder, settings)


def test_a_sweep_loses_nothing_on_workers_that_join_late_or_die(
    team: Team,
    finished: Clone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Program,
    run_all: bool,
) -> None:
    if not run_all:
        pytest.skip("runs with --all")
    settings, port = team.settings | team.keys, servers.free_port()
    address = f"tcp://127.0.0.1:{port}"
    folder = team.s3.parent / "cluster"  # among the files that must not have the keys
    user = clone_of(team, folder / "user")
    command = [sys.executable, "-m", "tools.sweep", "--scheduler", address]
    command += ["-S", "lr=0.01,0.03,0.1", "-S", "seed=range(1,9)", f"record@{CLASSIFIER}"]

    def scheduler(place: Path) -> Started:
        options = ("--host", "127.0.0.1", "--port", str(port))
        saturation = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0"}
        return cluster_program("scheduler", place, *options, **saturation)

    def worker(number: int) -> Started:
        clone = clone_of(team, folder / str(number))
        places = ("--host", f"127.0.0.{number}", "--local-directory", str(clone.folder) + ".dask")
        options = ("--nthreads", "1", "--no-nanny")
        return cluster_program("worker", clone.folder, address, *places, *options, **settings)

    def recorded() -> list[tuple[tuple[str, str], Run]]:
        """The finished runs of the sweep, each with its learning rate and seed."""
        return [
            ((run.data.params["lr"], run.data.params["seed"]), run)
            for run in servers.runs(team.settings["MLFLOW_TRACKING_URI"], CLASSIFIER)
            if run.info.status == "FINISHED" and run.info.run_name.startswith("lr-")
        ]

    def wait_for(number: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until the sweep has recorded so many runs, or has ended."""
        while len(recorded()) < number and process.poll() is None:
            time.sleep(1)

    with scheduler(tmp_path):  # not a clone
        done = user.try_(*command, **settings)
        assert done.returncode == 1 and "must be started in clones" in done.stderr

    with ExitStack() as stack:
        stack.enter_context(scheduler(clone_of(team, folder / "1").folder))
        first, _ = (stack.enter_context(worker(number)) for number in (2, 3))
        environment = user.environment | settings
        with subprocess.Popen(
            command, cwd=user.folder, env=environment, stderr=subprocess.PIPE
        ) as process:
            wait_for(4, process)
            stack.enter_context(worker(4))
            wait_for(12, process)
            first.kill()
            _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        for number in (2, 3, 4):  # each has run experiments
            (place,) = folder.glob(f"{number}.dask/**/clone")
            assert Clone(place, user.mirror).run("git", "for-each-ref", "refs/exps")

    made = dict(recorded())
    assert len(made) == len(recorded()) == 24
    shown = user.run("dvc", "exp", "show", "--md", "--num", "1")
    assert all(run.info.run_name in shown for run in made.values())

    # The stages alone, on one machine, make the same files.
    alone = finished.copy(tmp_path / "alone")
    monkeypatch.chdir(alone.folder)
    Path("dvc.lock").unlink()
    committed = Path("params.yaml").read_text()
    for (lr, seed), run in made.items():
        changes = {r"^lr: .*": f"lr: {lr}", r"^seed: .*": f"seed: {seed}"}
        changed = committed
        for old, new in changes.items():
            changed = re.sub(old, new, changed, flags=re.MULTILINE)
        Path("params.yaml").write_text(changed)
        for stage in (train, evaluate):
            assert in_process(stage, CLASSIFIER).returncode == 0
        tags = {k: v for k, v in run.data.tags.items() if k.startswith("sha256.")}
        assert len(tags) > 6
        assert tags == {tag: files.sha256(Path(tag.removeprefix("sha256."))) for tag in tags}
