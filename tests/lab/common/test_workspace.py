"""One process of a kind runs in a folder, and none outlives the DVC that started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracking.repository import ROOT

HOLD = """
import sys, time
from lab.common import workspace
with workspace.exclusive_lock("train mlp"):
    print("in", flush=True)
    time.sleep(float(sys.argv[1]))
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def start(folder: Path, *script: str, **environment: str) -> subprocess.Popen[str]:
    """A process in this folder, which prints "in" once it holds the lock."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", *script],
        cwd=folder,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("by_dvc", [True, False])
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path: Path, by_dvc: bool) -> None:
    environment = {"DVC_STAGE": "train@mlp"} if by_dvc else {}
    parent = start(tmp_path, PARENT, HOLD, "8", **environment)
    assert parent.stdout.readline() == "in\n"
    parent.kill()
    parent.wait()
    time.sleep(1.5)
    out, printed = start(tmp_path, HOLD, "0").communicate(timeout=50)
    assert out == "in\n"
    assert ("waiting" in printed) != by_dvc  # a stage started by hand outlives its shell
    parent.communicate()
