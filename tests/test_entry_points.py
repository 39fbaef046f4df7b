"""The packages of programs set up the process before torch is loaded; the libraries never do."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tracking.repository import ROOT

# Ends the process at the first import of torch, and says what the setting is by then.
PROBE = """
import importlib, os, sys

class Finder:
    def find_spec(name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder)
importlib.import_module(sys.argv[1])
print("no torch")
"""
# Says whether the import of modules changes the environment or the settings of torch.
CHANGES = """
import importlib, os, sys
import mlflow, torch
import exact  # which tells cuBLAS not to emulate float64

def state():
    numbers = torch.random.get_rng_state().tolist(), torch.tensor(1.0).dtype
    deterministic = torch.are_deterministic_algorithms_enabled()
    return dict(os.environ), numbers, deterministic, torch.get_num_threads()

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
print("changed" if state() != before else "unchanged")
"""


def python(code: str, *modules: str, **environment: str) -> str:
    """What the code prints, without a user's own OMP_WAIT_POLICY."""
    clean = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code, *modules]
    return subprocess.check_output(command, cwd=ROOT, env=clean | environment, text=True).strip()


def modules(*folders: str) -> list[str]:
    """The modules in the folders; of the tests only conftest, by which pytest begins."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if folder != "tests" or path.name == "conftest.py"
    ]


def test_threads_wait_passively_in_every_program() -> None:
    programs = modules("stages", "tools", "benchmarks", "tests")
    assert len(programs) > 20
    with ThreadPoolExecutor(2) as pool:
        found = dict(pool.map(lambda name: (name, python(PROBE, name)), programs))
    assert {m: s for m, s in found.items() if s not in ("PASSIVE", "no torch")} == {}
    assert "PASSIVE" in found.values()
    assert python(PROBE, "lab.training") == "None"  # the control: no program
    assert python(PROBE, "stages.train", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"  # the user's own


def test_an_import_of_a_library_changes_neither_the_environment_nor_torch() -> None:
    assert python(CHANGES, *modules("lab", "tracking")) == "unchanged"
    assert python(CHANGES, "stages") == "changed"  # the control


def test_sigterm_ends_a_program_quietly_even_while_python_ends() -> None:
    for rest, status in (
        ("stages.command(end)", 143),
        ("atexit.register(end); stages.command(lambda: None)", -signal.SIGTERM),
    ):
        end = "end = lambda: os.kill(os.getpid(), signal.SIGTERM)"
        program = f"import atexit, os, signal, stages; {end}; {rest}"
        command = [sys.executable, "-c", program]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (found.returncode, found.stderr) == (status, ""), rest


def test_a_program_ends_without_a_last_garbage_collection_unless_triton_is_loaded() -> None:
    end = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 0))"
    assert python(f"{end}; import stages") == "True"
    assert python(f"{end}; import stages; sys.modules['triton'] = sys") == "False"  # the control
