"""Every program of the repository tells PyTorch's threads how to wait before it loads torch."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks.clones import ROOT

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


def setting(module: str, **environment: str) -> str:
    """OMP_WAIT_POLICY when the module, or what it imports, first imports torch."""
    clean = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, module],
        cwd=ROOT, env=clean | environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_threads_wait_passively_in_every_program() -> None:
    folders = ("stages", "tools", "benchmarks", "tests")
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if folder != "tests" or path.name == "conftest.py"
    ]
    assert len(modules) > 20
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(modules, pool.map(setting, modules), strict=True))
    assert {m: s for m, s in found.items() if s not in ("PASSIVE", "no torch")} == {}
    assert "PASSIVE" in found.values()
    assert setting("lab.training") == "None"  # the control: no program
    assert setting("stages.train", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"  # the user's own


def test_children_of_the_tests_inherit_it() -> None:
    assert os.environ["OMP_WAIT_POLICY"]
