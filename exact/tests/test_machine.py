"""A machine that does not round as IEEE 754 says is refused."""

import subprocess
import sys
import time

import pytest
import torch

import exact
from exact import machine


def test_this_machine_passes_in_no_time() -> None:
    machine._check_products.cache_clear()
    started = time.perf_counter()
    machine.check()
    assert time.perf_counter() - started < 1  # 20 ms on a quiet machine


def test_a_default_device_does_not_matter() -> None:
    machine._check_products.cache_clear()
    with torch.device("meta"), exact.mode():
        assert (torch.ones(2) + 1).is_meta


def test_flushed_subnormals_are_refused() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        with pytest.raises(exact.MachineError, match="subnormal"), exact.mode():
            pass
    finally:
        torch.set_flush_denormal(False)
    with exact.mode():  # the control
        pass


def test_flushed_subnormals_are_refused_on_any_thread() -> None:
    # In a process of its own, as the workers keep what they have started with.
    script = """
import torch, exact
torch.set_num_threads(2)
torch.ones(1 << 20).mul_(1)
torch.set_num_threads(4)
if torch.set_flush_denormal(True):  # for the two workers that start now
    torch.ones(1 << 20).mul_(1)
    torch.set_flush_denormal(False)
    flushed = (torch.full((1 << 20,), 2.0**-130) * 0.5 == 0).any()
    print("flushed" if flushed else "")
    with exact.mode():
        pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if "flushed" not in done.stdout:
        pytest.skip("no worker flushes subnormals here")
    assert "MachineError: subnormal" in done.stderr


def test_products_that_round_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine._check_products.cache_clear()
    # One bit more than a float64 holds, as a GEMM with fewer bits would see it.
    monkeypatch.setattr(machine, "product_bits", lambda k: (27, 27))
    with pytest.raises(exact.MachineError, match="products are not exact"):
        machine.check()
    machine._check_products.cache_clear()


def test_the_package_imports_nothing_of_the_project_around_it() -> None:
    script = (
        "import sys, exact; print([m for m in sys.modules if m.split('.')[0] in ('lab', 'stages')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"
