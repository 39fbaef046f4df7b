"""One process of a kind in a folder, and none that outlives the DVC that started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import workspace

HOLD = """
import sys, time
from lab import workspace
with workspace.alone("train mlp"):
    print("in", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def hold(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A process that is at work, once its first line is read."""
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, "60"], cwd=folder, text=True,
        env=os.environ | {"PYTHONPATH": root} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_second_waits_and_says_so(tmp_path: Path) -> None:
    first = hold(tmp_path)
    assert first.stdout.readline() == "in\n"
    second = hold(tmp_path)
    assert "waiting for another train mlp" in second.stderr.readline()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    third = hold(elsewhere)
    assert third.stdout.readline() == "in\n"  # another folder has outputs of its own
    first.kill()
    assert second.stdout.readline() == "in\n"
    for process in (first, second, third):
        process.kill()
        process.communicate()


PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.parametrize("by_dvc", [True, False])
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path: Path, by_dvc: bool) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, HOLD, "8"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env=environment | ({"DVC_STAGE": "train@mlp"} if by_dvc else {}),
    )  # fmt: skip
    assert parent.stdout.readline() == "in\n"
    parent.kill()
    parent.communicate() if by_dvc else parent.wait()
    time.sleep(1.5)
    done = subprocess.run(
        [sys.executable, "-c", HOLD, "0"], cwd=tmp_path, text=True, check=True,
        capture_output=True, env=environment, timeout=50,
    )  # fmt: skip
    assert ("waiting" in done.stderr) != by_dvc  # one started by hand outlives its shell
    parent.stdout.close()


def test_notes_of_an_experiment_lie_in_the_main_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert workspace.main_root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert workspace.main_root() == Path("/elsewhere")
