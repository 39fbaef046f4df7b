"""A DVC remote, or an MLflow server's store of artifacts, that fails: nothing is lost."""

import contextlib
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from lab.common import lockfile
from stages import evaluate, record
from tests import servers
from tests.conftest import Clone, Program, contents
from tests.disks import UNLIMITED, limit
from tests.servers import BUCKET, remote_commands
from tests.test_sharing import OUTPUTS
from tools import repair

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault.with_args, "14. Sharing")
KEY, SECRET = "team-key", "team-secret"
KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_MAX_ATTEMPTS": "1"}
WRONG = KEYS | {"AWS_SECRET_ACCESS_KEY": "another-secret"}
MODEL = "linear_regression"
OUTPUT = Path(f"results/{MODEL}/model.safetensors")


class Remote:
    """An S3 server that can be started again, and where its objects lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = servers.free_port()
        (folder / BUCKET).mkdir(parents=True)

    def running(self) -> contextlib.AbstractContextManager[str]:
        """Its address, while it runs."""
        return servers.s3_server(self.folder, KEY, SECRET, self.port)

    def use(self, clone: Clone) -> None:
        """Set the remote up in the clone, and commit that."""
        for command in remote_commands(
            "s3", **{"https://s3.example.org": f"http://127.0.0.1:{self.port}"}
        ):
            clone.run(*command)
        clone.commit("a remote")

    def object(self, clone: Clone, output: Path) -> Path:
        """The object of one of the clone's outputs."""
        md5 = lockfile.md5(clone.folder / output)
        return self.folder / BUCKET / "dvc/files/md5" / md5[:2] / md5[2:]


def assert_dvc_says_why(done: subprocess.CompletedProcess[str], what: str) -> None:
    """DVC failed; it printed what and why, no stack trace and no secret."""
    assert done.returncode and re.search(f"^ERROR: {what}", done.stderr, flags=re.MULTILINE)
    assert "Traceback" not in done.stderr and "secret" not in done.stdout + done.stderr


@pytest.fixture
def pushed(clone: Clone, tmp_path: Path) -> tuple[Clone, Remote]:
    """A pipeline that was pushed and then lost its data, results and cache; and the remote."""
    remote = Remote(tmp_path / "s3")
    remote.use(clone)
    with remote.running():
        clone.run("dvc", "push", **KEYS)
    for name in ("data/regression_data", "data/fashion_mnist", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(clone.folder / name)
    for path in clone.folder.glob("results/*/*"):
        if path.suffix in (".csv", ".safetensors"):
            path.unlink()
    return clone, remote


@fault(
    "a remote that is away, or refuses the key, at `dvc pull` in a clone without data",
    "DVC names the remote and the reason, exit code 1, no file is changed; stages run all the same",
    "with the server and the right key the same command brings every byte",
)
@pytest.mark.parametrize("cause", ["away", "refuses the key"])
@pytest.mark.sample(0)
def test_a_remote_that_does_not_answer_or_refuses_changes_nothing(
    pushed: tuple[Clone, Remote], finished: Clone, cause: str
) -> None:
    clone, remote = pushed
    before = contents(clone.folder, *OUTPUTS)
    serving = remote.running() if cause == "refuses the key" else contextlib.nullcontext()
    with serving:
        done = clone.try_("dvc", "pull", **WRONG)
    assert_dvc_says_why(done, r"failed to connect to s3 \(our-bucket/dvc")
    assert contents(clone.folder, *OUTPUTS) == before
    clone.run("dvc", "repro", "generate_regression")
    with remote.running():
        clone.run("dvc", "pull", **KEYS)
    assert contents(clone.folder, *OUTPUTS) == contents(finished.folder, *OUTPUTS)


@fault(
    "a byte of an object in the remote is changed",
    "`dvc pull` leaves the file out and exits with 1; with the whole object it brings every byte",
    "without `verify` DVC accepts it, and the next stage refuses it in one line",
)
def test_a_damaged_object_is_never_used(
    pushed: tuple[Clone, Remote], finished: Clone, in_process: Program
) -> None:
    clone, remote = pushed
    stored = remote.object(finished, OUTPUT)
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with remote.running():
        done = clone.try_("dvc", "pull", **KEYS)
        assert_dvc_says_why(done, "failed to pull data from the cloud")
        assert str(OUTPUT) in done.stderr and not OUTPUT.exists()

        clone.run("dvc", "remote", "modify", "team", "verify", "false")
        clone.run("dvc", "pull", **KEYS)
        assert OUTPUT.read_bytes() != whole
        refused = in_process(evaluate, MODEL)
        assert refused.returncode == 1
        assert re.fullmatch(f"error: {OUTPUT} is not what dvc.lock says .*\n", refused.stderr)

        clone.run("git", "checkout", "--quiet", ".dvc/config")
        stored.write_bytes(whole)
        assert in_process(repair, "--damaged").returncode == 0
        clone.run("dvc", "pull", **KEYS)
    assert contents(clone.folder, *OUTPUTS) == contents(finished.folder, *OUTPUTS)


@fault(
    "the remote's disk is full at `dvc push`",
    "DVC says how many files failed, exit code 1; no local file is changed",
    "with more room the same command pushes the rest, and another clone pulls every byte",
)
@pytest.mark.sample(0)
def test_a_full_remote_loses_nothing(clone: Clone, finished: Clone, disk: Path) -> None:
    remote = Remote(disk / "s3")
    remote.use(clone)
    everything = contents(clone.folder, *OUTPUTS, ".dvc/cache/**/*")
    with remote.running():
        limit(disk, "1000 KiB")
        assert_dvc_says_why(clone.try_("dvc", "push", **KEYS), "failed to push data to the cloud")
        assert contents(clone.folder, *OUTPUTS, ".dvc/cache/**/*") == everything
        limit(disk, *UNLIMITED)
        clone.run("dvc", "push", **KEYS)
        for name in ("data/fashion_mnist", ".dvc/cache"):
            shutil.rmtree(clone.folder / name)
        clone.run("dvc", "pull", **KEYS)
    assert contents(clone.folder, *OUTPUTS) == contents(finished.folder, *OUTPUTS)


@fault(
    "an MLflow server whose S3 store of artifacts is away, at `record`",
    "one line with the server's address, exit code 1; no secret in it",
    "with the store the next recorder records the result, once",
)
@pytest.mark.sample(0)
def test_a_server_without_its_artifacts_fails_in_one_line(
    clone: Clone, tmp_path: Path, in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(tmp_path / "s3")
    of_server = KEYS | {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{remote.port}"}
    with servers.mlflow_server("sqlite", tmp_path, f"s3://{BUCKET}/x", **of_server) as address:
        for name, value in servers.server_settings(address).items():
            monkeypatch.setenv(name, value)
        failed = in_process(record, MODEL)
        assert failed.returncode == 1 and re.fullmatch("error: .*\n", failed.stderr)
        assert address in failed.stderr and "secret" not in failed.stderr
        with remote.running():
            done = in_process(record, MODEL)
            assert done.returncode == 0, done.stderr
        runs = servers.runs(address, MODEL)
        assert [run.info.status for run in runs] == ["FAILED", "FINISHED"]
        assert not os.environ.get("AWS_ACCESS_KEY_ID")
