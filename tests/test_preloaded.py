"""A fork of the preloaded process does what a whole one does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FORKING, Clone

pytestmark = pytest.mark.slow
PROGRAM = """
import atexit, os, signal, sys, time

atexit.register(print, "at exit")

def end(number, _):
    print("terminated", flush=True)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

signal.signal(signal.SIGTERM, end)
print("torch" in sys.modules, *sys.argv[1:], os.environ["WORD"], sys.stdin.read(), flush=True)
if sys.argv[2:]:
    time.sleep(60)
    print("not ended")
sys.exit(7)
"""
STARTS = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'program', 'y'])"


@pytest.fixture
def folder(tmp_path: Path) -> Clone:
    """A folder with a program that says whether a library was loaded before it began."""
    if FORKING not in os.environ:
        pytest.skip("only on Linux is anything forked")
    (tmp_path / "program.py").write_text(PROGRAM)
    clone = Clone(tmp_path, tmp_path)
    clone.with_forks()
    return clone


def test_it_has_the_folder_environment_and_arguments_and_ends_with_the_same_code(
    folder: Clone,
) -> None:
    command = ("python", "-m", "program", "x")
    done = folder.try_(*command, WORD="word")
    assert (done.stdout, done.returncode) == ("True x word \nat exit\n", 7)
    done = folder.try_(*command)  # without the variable
    assert done.stderr.endswith("KeyError: 'WORD'\n") and done.returncode == 1
    # What Python reads before it begins needs a whole process.
    done = folder.try_(*command, WORD="word", PYTHONHASHSEED="1")
    assert (done.stdout, done.returncode) == ("False x word \nat exit\n", 7)
    (folder.folder / "killed.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert folder.try_("python", "-m", "killed").returncode == -9
    (folder.folder / "starts.py").write_text(STARTS)
    assert folder.run("python", "-m", "starts", WORD="word") == "True y word \nat exit\n"
    folder.without_forks()  # the control
    assert folder.try_(*command, WORD="word").stdout == "False x word \nat exit\n"


@pytest.mark.parametrize(
    ("number", "last"), [(signal.SIGTERM, b"terminated\n"), (signal.SIGKILL, b"")]
)
def test_it_ends_with_the_process_that_asked_for_it(
    folder: Clone, number: int, last: bytes
) -> None:
    command = ["python", "-m", "program", "x", "stay"]
    environment = folder.environment | {"WORD": "word"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder.folder, env=environment, stdin=pipe, stdout=pipe
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.close()
        assert process.stdout.readline() == b"True x stay word \n"
        process.send_signal(number)
        assert process.stdout.read() == last  # until the fork has ended, too
    assert process.returncode == -number


def test_what_is_no_module_runs_in_a_whole_process(folder: Clone) -> None:
    program = "import sys; print(sys.orig_argv[0], *sys.argv)"
    assert folder.run("python", "-c", program, "x") == f"{sys.executable} -c x\n"
