"""The tracking server refuses connections, hangs, dies, loses an answer, and recovers.

A real MLflow server stands behind a proxy that lets the n-th request of a recorder fail.
"""

import math
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import urllib3
from mlflow import MlflowClient
from mlflow.entities import Run

from lab.common import files
from tests.conftest import Clone
from tests.inputs import Request, page, refusing, serving
from tests.servers import Stage, mlflow_server, runs, server_settings

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault.with_args, "4. The tracking server")
MODEL = "linear_regression"


class Proxy:
    """What answers at a second address of a server, where chosen requests fail."""

    def __init__(self, real: str) -> None:
        self.real, self.lock, self.recovered = real, threading.Lock(), threading.Event()
        self.recover()

    def recover(self) -> None:
        """End the fault, and count requests from 1 again."""
        self.fail("", 1, 0)
        self.recovered.set()

    def fail(self, fault: str, first: int, last: float = math.inf) -> None:
        """Let the requests `first` to `last` from now on fail.

        `hang`: no answer. `delay`: no answer before `recover`. `cut`: the connection ends. `lose`:
        the real server gets the first of the requests, then all connections end. A number: the
        answer's HTTP status.
        """
        with self.lock:
            self.seen: list[str] = []  # the requests' paths
            self.since = time.monotonic()  # and later, when the first request failed
            self.fault, self.first, self.last = fault, first, last
            self.recovered.clear()

    def fault_of(self, path: str) -> str:
        """Count a request, and return its fault or an empty string."""
        with self.lock:
            self.seen.append(path)
            n = len(self.seen)
            if n == self.first:
                self.since = time.monotonic()
            elif self.first < n <= self.last and self.fault == "lose":
                return "cut"
            return self.fault if self.first <= n <= self.last else ""

    def answer(self, request: Request) -> bytes:
        fault = self.fault_of(request.path)
        if fault in ("hang", "delay"):
            self.recovered.wait()
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if fault in ("hang", "cut"):
            return b""
        if fault.isdecimal():
            return page(b"fault", int(fault))
        kind = {"Content-Type": request.headers.get("Content-Type", "")}
        real = urllib3.request(request.command, self.real + request.path, body=body, headers=kind)
        header = "Content-Type: application/json\r\nConnection: close\r\nContent-Length: {size}"
        return b"" if fault == "lose" else page(real.data, real.status, header)


class Place:
    """A finished pipeline of which one model is to be recorded, and the server for it."""

    def __init__(self, clone: Clone, proxy: Proxy, address: str, seconds: int) -> None:
        self.clone, self.proxy, self.address, self.seconds = clone, proxy, address, seconds
        self.server = server = proxy.real
        self.client = MlflowClient(tracking_uri=server)
        self.receipt = clone.folder / f"results/{MODEL}/receipt.json"
        # Its files say, outside the store, that a run may be incomplete.
        self.markers = clone.folder / ".dvc/tmp/recording"
        self.reset()
        assert self.record() == (0, "")
        self.requests = proxy.seen
        self.complete = self.contents(*runs(server, MODEL))
        self.outputs = self.digests()

    def reset(self) -> None:
        """Forget all that was recorded."""
        self.proxy.recover()
        shutil.rmtree(self.markers, ignore_errors=True)
        self.receipt.unlink(missing_ok=True)
        for experiment in self.client.search_experiments():
            if experiment.name != "Default":
                self.client.rename_experiment(experiment.experiment_id, f"old {uuid.uuid4()}")

    def record(self, model: str = MODEL, uri: str = "") -> tuple[int | None, str]:
        """The exit code and the errors of a recorder with the default time-out."""
        settings = server_settings(uri or self.address)
        settings["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"
        return Stage(self.clone.folder, "record", model, **settings).end()

    def start_until_fault(self) -> Stage:
        """Start a patient recorder, and wait until its request fails."""
        settings = server_settings(self.address)
        stage = Stage(self.clone.folder, "record", MODEL, **settings)
        while len(self.proxy.seen) < self.proxy.first:
            assert stage.process.poll() is None
            time.sleep(0.01)
        return stage

    def request(self, part: str) -> int:
        """The number of a recorder's first request with this in its path."""
        return next(n for n, path in enumerate(self.requests, 1) if part in path)

    def statuses(self) -> list[str]:
        return sorted(run.info.status for run in runs(self.server, MODEL))

    def contents(self, run: Run) -> tuple[Any, ...]:
        """What a run holds, without the model's name, which is always new."""
        names = [file.path for file in self.client.list_artifacts(run.info.run_id)]
        (output,) = run.outputs.model_outputs
        status = self.client.get_logged_model(output.model_id).status
        inputs = sorted(entry.dataset.digest for entry in run.inputs.dataset_inputs)
        return run.data.params, run.data.metrics, set(run.data.tags), names, inputs, status

    def digests(self) -> dict[str, str]:
        """The digest of every file that the stages wrote, without the receipt."""
        paths = [self.clone.folder / "dvc.lock"]
        paths += [*self.clone.folder.glob("data/*/*"), *self.clone.folder.glob("results/*/*")]
        return {str(p): files.sha256(p) for p in paths if p.name != "receipt.json"}

    def require_failed(self, code: int | None, stderr: str) -> None:
        """The recorder ended soon, with one line, and changed nothing."""
        assert time.monotonic() - self.proxy.since < self.seconds
        assert code == 1
        assert re.fullmatch(r"error: .+\n", stderr), stderr
        assert not self.receipt.exists()
        assert self.digests() == self.outputs

    def require_recorded_once(self) -> None:
        """One run is as complete as without a fault. All others are FAILED."""
        assert self.statuses().count("FINISHED") == 1
        assert set(self.statuses()) <= {"FAILED", "FINISHED"}
        (run,) = (run for run in runs(self.server, MODEL) if run.info.status == "FINISHED")
        assert self.contents(run) == self.complete
        assert self.receipt.exists()
        assert self.digests() == self.outputs
        assert not list(self.markers.glob("*/*"))


@pytest.fixture(scope="module")
def place(
    finished: Clone, tmp_path_factory: pytest.TempPathFactory, run_all: bool
) -> Iterator[Place]:
    clone = finished.copy(tmp_path_factory.mktemp("server") / "clone")
    store = tmp_path_factory.mktemp("sqlite")
    with mlflow_server("sqlite", store) as server:
        proxy = Proxy(server)
        with serving(proxy.answer) as (address, _):
            # The README promises ten seconds. A machine with other work gets more.
            yield Place(clone, proxy, address, 10 if run_all else 100)
            proxy.recover()


ENDED = "the recorder ends with one line within 10 s; data and results are as before;"
ONCE = f"{ENDED} the next one records once and marks the incomplete run FAILED"
# What happens: the kind of fault, whether it lasts, and the request that it begins with.
FAULTS = {
    "the server never answers": ("hang", True, "health"),
    "the server hangs": ("hang", True, "experiments/create"),
    "the server hangs at the model": ("hang", True, "runs/outputs"),
    "the server dies": ("cut", True, "runs/create"),
    "one request is answered with 500": ("500", False, "artifacts/"),
    "all requests from one on are answered with 503": ("503", True, "runs/log-inputs"),
    "one answer is lost": ("lose", False, ""),
    "the server dies between a request and its answer": ("lose", True, "logged-models"),
}


@pytest.mark.sample(2)
@fault("during a recording, {what}", ONCE)
@pytest.mark.parametrize("what", FAULTS)
def test_after_a_fault_of_the_server_the_next_recorder_records_once(
    place: Place, run_all: bool, times: Callable[[int], None], what: str
) -> None:
    kind, lasting, part = FAULTS[what]
    last = len(place.requests)
    numbers = {place.request(part) if part else last}
    if run_all and part != "health":
        numbers |= {place.request("runs/create"), last - 1, last}
        numbers |= set(range(1 + len(what) % 6, last, 6))
    if kind.isdecimal():
        numbers -= {1}  # which only tests whether there is any answer
    for n in sorted(numbers):
        place.reset()
        place.proxy.fail(kind, n, math.inf if lasting else n)
        place.require_failed(*place.record())
        place.proxy.recover()
        assert place.record() == (0, "")
        place.require_recorded_once()
    times(len(numbers))


@fault("the server refuses connections, then hangs during a recording; later `dvc repro`", ONCE)
def test_dvc_repro_records_after_the_server_has_recovered(place: Place) -> None:
    place.reset()
    with refusing() as address:
        place.require_failed(*place.record(uri=address))
    store = {"MLFLOW_TRACKING_URI": address}
    with serving(place.proxy.answer, int(address.split(":")[-1])):
        place.proxy.fail("hang", place.request("runs/create"))
        # A real process, whose time-outs are the default ones.
        done = place.clone.try_("python", "-m", "stages.record", MODEL, **store)
        place.require_failed(done.returncode, done.stderr)
        place.proxy.recover()
        place.clone.run("dvc", "repro", f"record@{MODEL}", **store)
        place.require_recorded_once()


@fault(
    "the answer to the last request is lost; another model is recorded; the next recorder"
    " cannot write its receipt",
    "the finished run is found, and there is no second one",
)
def test_a_run_whose_last_answer_was_lost_is_not_recorded_again(place: Place) -> None:
    place.reset()
    last = len(place.requests)
    place.proxy.fail("lose", last, last)
    place.require_failed(*place.record())
    assert place.statuses() == ["FINISHED"]
    # A recorder of another model looks through the markers first.
    place.proxy.recover()
    assert place.record("softmax_regression") == (0, "")
    # The next recorder finds its run, but fails before it has written its receipt.
    place.receipt.mkdir()
    assert place.record()[0] == 1
    place.receipt.rmdir()
    assert place.record() == (0, "")
    assert place.statuses() == ["FINISHED"]
    place.require_recorded_once()


@fault(
    "SIGKILL to a recorder",
    "the next one marks its run FAILED, and records once",
    "without the file in `.dvc/tmp/recording` the run stays RUNNING",
)
def test_the_run_of_a_killed_recorder_is_marked_failed(
    place: Place, run_all: bool, times: Callable[[int], None]
) -> None:
    last = len(place.requests)
    numbers = {place.request("runs/outputs")}
    if run_all:
        numbers |= {place.request("runs/create") + 1, *range(7, last, 9), last}
    for protected in (True, False):
        for n in sorted(numbers):
            place.reset()
            place.proxy.fail("hang", n)
            stage = place.start_until_fault()
            stage.process.kill()
            stage.end()
            assert place.statuses() == ["RUNNING"]
            if not protected:
                shutil.rmtree(place.markers)
            place.proxy.recover()
            assert place.record() == (0, "")
            if protected:
                place.require_recorded_once()
            other = "FAILED" if protected else "RUNNING"
            assert place.statuses() == sorted([other, "FINISHED"])
    times(len(numbers))


@fault(
    "a recorder waits for the server while another one records",
    "its run is not marked FAILED",
    "the run of a killed one is",
)
def test_a_recorder_does_not_touch_the_run_of_one_that_is_running(place: Place) -> None:
    place.reset()
    n = place.request("runs/outputs")
    place.proxy.fail("delay", n, n)
    waiting = place.start_until_fault()
    assert place.record("softmax_regression") == (0, "")
    assert place.statuses() == ["RUNNING"]
    place.proxy.recover()
    assert waiting.end() == (0, "")
    place.require_recorded_once()
    assert place.statuses() == ["FINISHED"]


@fault(
    "training with the address of a server that does not answer",
    "the same model, and no connection",
    "`record` connects",
)
def test_training_does_not_contact_the_server(place: Place) -> None:
    place.reset()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        model = place.clone.folder / f"results/{MODEL}/model.safetensors"
        model.unlink()
        training = Stage(place.clone.folder, "train", MODEL, MLFLOW_TRACKING_URI=address)
        assert training.end()[0] == 0
        assert place.digests() == place.outputs
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()
        settings = server_settings(address)
        recorder = Stage(place.clone.folder, "record", MODEL, **settings)
        silent.settimeout(60)
        silent.accept()[0].close()
        assert recorder.end()[0] == 1
