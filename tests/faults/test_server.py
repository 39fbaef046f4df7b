"""The tracking server refuses, hangs, dies half-way, loses an answer, and comes back.

A real MLflow server stands behind a proxy that harms the n-th request of a recorder.
"""

import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lab import files
from lab.params import ModelName
from tests.conftest import Clone
from tests.faults.conftest import copy_of
from tests.servers import mlflow_server, runs

pytestmark = pytest.mark.slow
PART = "4. The tracking server"
MODEL: ModelName = "linear_regression"
RECORD = ("python", "-m", "stages.record", MODEL)
EVER = 1_000_000
Answer = tuple[int, list[tuple[str, str]], bytes]


class Handler(BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def log_message(self, *_: object) -> None:
        pass

    def harm_or_pass_on(self) -> None:
        fault = self.server.fault_of(self.path)
        if fault in ("hang", "hold"):
            self.server.normal.wait()
        if fault in ("", "hold"):
            self.answer(*self.behind())
        elif fault.isdecimal():
            self.body()
            self.answer(int(fault), [], b"harmed")
        else:
            self.close_connection = True
            if fault == "lose":
                self.behind()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = harm_or_pass_on  # noqa: N815

    def body(self) -> bytes:
        """The request's body, read to its end so that the connection can be used again."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def behind(self) -> Answer:
        """What the server behind says to the request."""
        body = self.body()
        own = ("host", "connection", "transfer-encoding", "content-length")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in own}
        with contextlib.closing(http.client.HTTPConnection(self.server.behind)) as connection:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def answer(self, status: int, headers: list[tuple[str, str]], contents: bytes) -> None:
        self.send_response_only(status)
        for key, value in headers:
            if key.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        self.wfile.write(contents)


class Proxy(ThreadingHTTPServer):
    """An address of its own for a server; the n-th request that comes there meets a fault."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, behind: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.behind = behind.removeprefix("http://")
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.lock, self.normal = threading.Lock(), threading.Event()
        self.comes_back()

    def comes_back(self) -> None:
        """End the fault, and count requests anew."""
        self.harm("", 1, 0)
        self.normal.set()

    def harm(self, fault: str, first: int, last: int = EVER) -> None:
        """Let the requests of these numbers, from now on, meet the fault.

        `hang` never answers, and `hold` not before `comes_back`; `cut` ends the connection; `lose`
        does so too when the server has done the first of the requests; a number is an HTTP status.
        """
        with self.lock:
            self.seen: list[tuple[str, float]] = []  # path and time of each request
            self.fault, self.first, self.last = fault, first, last
            self.normal.clear()

    def fault_of(self, path: str) -> str:
        """Count a request, and say what it meets."""
        with self.lock:
            self.seen.append((path, time.monotonic()))
            n = len(self.seen)
            if not self.first <= n <= self.last:
                return ""
            return "cut" if self.fault == "lose" and n > self.first else self.fault

    def harmed_at(self) -> float | None:
        """When the fault was first met; None where it was not yet."""
        with self.lock:
            return self.seen[self.first - 1][1] if len(self.seen) >= self.first else None

    def handle_error(self, *_: object) -> None:
        """Say nothing of a recorder that has gone before its answer."""


@contextlib.contextmanager
def proxy_of(behind: str, port: int = 0) -> Iterator[Proxy]:
    with Proxy(behind, port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=[0.05])
        thread.start()
        yield proxy
        proxy.comes_back()
        proxy.shutdown()
        thread.join()


class Attempt(NamedTuple):
    """A recorder that came to an end."""

    done: subprocess.CompletedProcess[str]
    began: float
    ended: float


class Place:
    """A finished pipeline, of which one model is to be recorded, and the server for it."""

    def __init__(self, clone: Clone, server: str, proxy: Proxy, seconds: int) -> None:
        self.clone, self.server, self.proxy, self.seconds = clone, server, proxy, seconds
        self.client = MlflowClient(tracking_uri=server)
        self.receipt = clone.folder / f"results/{MODEL}/receipt.json"
        self.afresh()
        attempt = self.record()
        assert not attempt.done.returncode, attempt.done.stderr
        self.requests = [path for path, _ in proxy.seen]
        self.startup = proxy.seen[0][1] - attempt.began
        self.whole = self.contents(*self.runs())
        self.outputs = self.found()

    def afresh(self) -> None:
        """As if nothing had been recorded."""
        self.proxy.comes_back()
        shutil.rmtree(self.clone.folder / ".dvc/tmp/recording", ignore_errors=True)
        self.receipt.unlink(missing_ok=True)
        for experiment in self.client.search_experiments():
            if experiment.name != "Default":
                self.client.rename_experiment(experiment.experiment_id, f"old {uuid.uuid4()}")

    def record(self, address: str | None = None) -> Attempt:
        """Try to record."""
        began = time.monotonic()
        done = self.clone.try_(*RECORD, MLFLOW_TRACKING_URI=address or self.proxy.address)
        return Attempt(done, began, time.monotonic())

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start to record, up to the request that the proxy harms."""
        environment |= {"MLFLOW_TRACKING_URI": self.proxy.address}
        process = subprocess.Popen(
            RECORD, cwd=self.clone.folder, env=self.clone.environment | environment
        )
        while not self.proxy.harmed_at():
            assert process.poll() is None
            time.sleep(0.01)
        return process

    def repro(self, address: str | None = None) -> None:
        """What the user does when the server is there again."""
        uri = address or self.proxy.address
        self.clone.run("dvc", "repro", f"record@{MODEL}", MLFLOW_TRACKING_URI=uri)

    def runs(self) -> list[Run]:
        known = self.client.get_experiment_by_name(MODEL)
        return runs(self.server, MODEL) if known else []

    def statuses(self) -> list[str]:
        return sorted(run.info.status for run in self.runs())

    def marks(self) -> list[Path]:
        """What says, beside the store, that a run may be half-written."""
        return list(self.clone.folder.glob(".dvc/tmp/recording/*/*"))

    def contents(self, run: Run) -> tuple[Any, ...]:
        """What a run holds, but for its model that has a new name each time."""
        names = [file.path for file in self.client.list_artifacts(run.info.run_id)]
        (model,) = self.client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        )
        inputs = sorted(entry.dataset.digest for entry in run.inputs.dataset_inputs)
        data = run.data
        return data.params, data.metrics, set(data.tags), names, inputs, str(model.status)

    def found(self) -> dict[str, str]:
        """The digest of everything that the stages wrote, but for the receipt."""
        paths = [self.clone.folder / "dvc.lock"]
        paths += [*self.clone.folder.glob("data/*/*"), *self.clone.folder.glob("results/*/*")]
        return {
            str(path): files.sha256(path)
            for path in paths
            if path.is_file() and path.name != "receipt.json"
        }

    def require_failed(self, attempt: Attempt, since: float) -> None:
        """One line, soon, and nothing else."""
        assert attempt.done.returncode == 1
        assert re.fullmatch(r"error: .+\n", attempt.done.stderr), attempt.done.stderr
        assert attempt.ended - since < self.seconds
        assert not self.receipt.exists()
        assert self.found() == self.outputs

    def require_recorded_once(self) -> None:
        """One run, as whole as without a fault; what is left of others says that it FAILED."""
        assert self.statuses().count("FINISHED") == 1
        assert set(self.statuses()) <= {"FAILED", "FINISHED"}
        (run,) = (run for run in self.runs() if run.info.status == "FINISHED")
        assert self.contents(run) == self.whole
        assert self.receipt.exists()
        assert self.found() == self.outputs
        assert not self.marks()


@pytest.fixture(scope="module")
def place(finished: Clone, tmp_path_factory: pytest.TempPathFactory, full: bool) -> Iterator[Place]:
    clone = copy_of(finished, tmp_path_factory.mktemp("server") / "copy")
    with (
        mlflow_server("sqlite", tmp_path_factory.mktemp("sqlite")) as server,
        proxy_of(server) as proxy,
    ):
        # Ten seconds are the promise; a machine with other work gets more.
        yield Place(clone, server, proxy, 10 if full else 30)


def request(place: Place, part: str) -> int:
    """The number of the first request with this in its path."""
    return next(n for n, path in enumerate(place.requests, 1) if part in path)


HALF = "the recorder ends with one line within 10 s, data and results are as before;"
ONCE = f"{HALF} the next `dvc repro` records once, and what was half-written is FAILED"


@pytest.mark.parametrize(
    ("what", "fault", "lasting", "part"),
    [
        ("it hangs", "hang", True, "experiments/create"),
        ("it hangs, within the model", "hang", True, "runs/outputs"),
        ("it dies", "cut", True, "runs/create"),
        ("it answers one request by 500", "500", False, "artifacts/"),
        ("it answers by 503 from one request on", "503", True, "runs/log-inputs"),
        ("it does what is asked, and one answer is lost", "lose", False, ""),
        ("it does what is asked, and dies before it answers", "lose", True, "logged-models"),
    ],
)
def test_a_server_that_fails_half_way_has_the_run_once_in_the_end(
    place: Place, full: bool, tried: Callable[..., None],
    what: str, fault: str, lasting: bool, part: str,
) -> None:  # fmt: skip
    last = len(place.requests)
    numbers = {request(place, part) if part else last}
    if full:
        numbers |= {request(place, "runs/create"), last - 1, last}
        numbers |= set(range(1 + len(what) % 6, last, 6))
    if fault.isdecimal():
        numbers -= {1}  # which only asks whether there is any answer
    for n in sorted(numbers):
        place.afresh()
        place.proxy.harm(fault, n, EVER if lasting else n)
        attempt = place.record()
        place.require_failed(attempt, place.proxy.harmed_at() or 0)
        place.proxy.comes_back()
        place.repro()
        place.require_recorded_once()
    tried(PART, f"half-way through a recording {what}", ONCE, times=len(numbers))


def test_a_server_that_refuses_or_hangs_from_the_start_has_the_run_once_when_it_is_there(
    place: Place, tried: Callable[..., None]
) -> None:
    place.afresh()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused = place.record(f"http://127.0.0.1:{port}")
    place.require_failed(refused, refused.began + place.startup)
    with proxy_of(place.server, port) as proxy:
        proxy.harm("hang", 1)
        hung = place.record(proxy.address)
        place.require_failed(hung, hung.began + place.startup)
        assert place.statuses() == []
        proxy.comes_back()
        place.repro(proxy.address)
        assert place.statuses() == ["FINISHED"]
        place.require_recorded_once()
    tried(PART, "it refuses connections, then accepts them and says nothing", ONCE)


def test_a_run_whose_last_answer_was_lost_is_not_recorded_again_whatever_comes_between(
    place: Place, tried: Callable[..., None]
) -> None:
    place.afresh()
    last = len(place.requests)
    place.proxy.harm("lose", last, last)
    place.require_failed(place.record(), place.proxy.harmed_at() or 0)
    assert place.statuses() == ["FINISHED"]
    # Another recorder looks through what is left before the one that it concerns.
    place.proxy.comes_back()
    place.clone.run(*RECORD[:-1], "softmax_regression", MLFLOW_TRACKING_URI=place.proxy.address)
    # The one that it concerns finds it, and breaks off before it has its receipt.
    place.receipt.mkdir()
    assert place.record().done.returncode == 1
    place.receipt.rmdir()
    place.repro()
    assert place.statuses() == ["FINISHED"]
    place.require_recorded_once()
    tried(
        PART,
        "the answer to the last request is lost; another model is recorded; the next recorder"
        " cannot write its receipt",
        "the run that had ended well is found, and there is no second",
    )


def test_a_recorder_that_was_killed_leaves_a_run_that_the_next_one_marks(
    place: Place, full: bool, tried: Callable[..., None]
) -> None:
    last = len(place.requests)
    numbers = {request(place, "runs/outputs")}
    if full:
        numbers |= {request(place, "runs/create") + 1, *range(7, last, 9), last}
    for protected in (True, False):
        for n in sorted(numbers):
            place.afresh()
            place.proxy.harm("hang", n)
            process = place.start()
            process.kill()
            process.wait()
            assert place.statuses() == ["RUNNING"]
            for path in [] if protected else place.marks():
                path.unlink()
            place.proxy.comes_back()
            place.repro()
            if protected:
                place.require_recorded_once()
            assert place.statuses() == (
                ["FAILED", "FINISHED"] if protected else ["FINISHED", "RUNNING"]
            )
    tried(
        PART,
        "SIGKILL to a recorder half-way",
        "the next one marks its run FAILED, and records once",
        "without the mark in `.dvc/tmp/recording` the run stays RUNNING for ever",
        times=len(numbers),
    )


def test_a_recorder_at_work_is_left_alone_by_another(
    place: Place, tried: Callable[..., None]
) -> None:
    place.afresh()
    n = request(place, "runs/outputs")
    place.proxy.harm("hold", n, n)
    process = place.start(MLFLOW_HTTP_REQUEST_TIMEOUT="100")
    place.clone.run(*RECORD[:-1], "softmax_regression", MLFLOW_TRACKING_URI=place.proxy.address)
    assert place.statuses() == ["RUNNING"]
    place.proxy.comes_back()
    assert process.wait() == 0
    place.require_recorded_once()
    assert place.statuses() == ["FINISHED"]
    tried(
        PART,
        "a recorder waits for the server while another records",
        "its run is not taken for one left behind",
        "that of a killed one is",
    )


def test_training_asks_no_server(place: Place, tried: Callable[..., None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        model = place.clone.folder / f"results/{MODEL}/model.safetensors"
        model.unlink()
        place.clone.run("python", "-m", "stages.train", MODEL, MLFLOW_TRACKING_URI=address)
        assert model.exists() and place.found() == place.outputs
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()
        # The same address is asked by what does need a server.
        assert place.record(address).done.returncode == 1
        silent.accept()[0].close()
    tried(
        PART,
        "training with the address of a server that says nothing",
        "the same model, and no connection was tried",
        "`record` connects",
    )
