"""Stages on several workers, here and on two machines, write the bytes of one process."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lab import schema
from tests.conftest import Clone, contents

pytestmark = [pytest.mark.slow, pytest.mark.sample(0)]
MODEL = "linear_regression"
RESULTS = schema.results(MODEL)


def test_the_pipeline_of_three_workers_leaves_the_clone_clean(clone: Clone) -> None:
    stages = [f"{stage}@{MODEL}" for stage in ("train", "evaluate")]
    clone.run("dvc", "repro", "--force", *stages, WORKERS="3")
    assert clone.run("git", "status", "--short") == ""
    clone.edit({"lr: 0.03": "lr: 0.04"})  # the control
    clone.run("dvc", "repro", *stages, WORKERS="3")
    assert "dvc.lock" in clone.run("git", "status", "--short")


def test_a_number_of_workers_that_is_none_is_told(clone: Clone) -> None:
    done = clone.try_(sys.executable, "-m", "stages.train", MODEL, WORKERS="many")
    assert done.returncode == 1
    assert done.stderr == "error: WORKERS: expected a number from 1 to 256; found many\n"


def test_two_machines_train_by_torchrun_and_the_first_one_writes(
    clone: Clone, tmp_path: Path
) -> None:
    """Two loopback addresses, a clone each, and three workers in all."""
    expected, second = contents(RESULTS), clone.copy(tmp_path / "second")
    for machine in (clone, second):
        shutil.rmtree(machine.folder / RESULTS)
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    torchrun = Path(sys.executable).with_name("torchrun")
    rest = ["--master-addr=127.0.0.2", f"--master-port={port}", "-m", "stages.train", MODEL]
    started = [
        subprocess.Popen(
            [torchrun, "--nnodes=2", f"--nproc-per-node={processes}", f"--node-rank={rank}", *rest],
            cwd=machine.folder,
            env=machine.environment | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank, (machine, processes) in enumerate([(clone, 2), (second, 1)])
    ]
    assert [process.wait() for process in started] == [0, 0]
    names = ("model.safetensors", "history.csv", "gradients.csv")
    assert contents(RESULTS) == {name: expected[name] for name in names}
    assert not (second.folder / RESULTS).exists()
