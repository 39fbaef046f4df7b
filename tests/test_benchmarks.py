"""What other machines train has the same bits: torchvision's models, and the probe of exact."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import emulated
from exact.probe import FROZEN
from tracking.repository import ROOT

# As this machine computes, and as one without vector instructions, in PyTorch's loops and in MKL.
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"},
)


@pytest.mark.slow
@pytest.mark.sample(0)
@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_model_of_torchvision_has_the_same_bits_and_natively_it_has_others(name: str) -> None:
    def digests(arithmetic: str) -> set[str]:
        command = [sys.executable, "-m", "benchmarks.models", "--train", name, arithmetic]
        return {
            subprocess.check_output(command, cwd=ROOT, env=os.environ | environment, text=True)
            for environment in ENVIRONMENTS
        }

    assert len(digests("exact")) == 1
    assert len(digests("native")) == 2  # the control


@pytest.mark.slow
@pytest.mark.sample(0)  # exact/tests/test_package.py runs the probe in another environment, too
def test_the_probe_runs_in_another_python_and_finds_the_expected_hash(tmp_path: Path) -> None:
    machine = emulated.here(tmp_path)
    for kernels in {False, bool(shutil.which("cc"))}:
        version, digest = emulated.train(machine, "exact", kernels)
        assert digest == FROZEN and version[0].isdigit()
    assert emulated.train(machine, "native")[1] != FROZEN  # the control
