"""The process is changed from the first block's begin to the last one's end, and not else."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import exact

W = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))

# Prints the state of the process before the import, after it, within blocks and after them.
STATES = """
import math, os, threading
import torch
import torch._dynamo
from torch._C._dynamo import eval_frame
from torch.optim import lr_scheduler, optimizer, swa_utils

def state():
    hooks = optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks
    switches = ("flash", "mem_efficient", "cudnn", "math")
    return {
        "environment": dict(os.environ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "Thread.start": threading.Thread.start,
        "schedules": [lr_scheduler.math, swa_utils.math],
        "hooks": [list(hook) for hook in hooks],
        "attention": [getattr(torch.backends.cuda, f"{s}_sdp_enabled")() for s in switches],
        "layers": [torch._VF.lstm, torch.backends.mha.get_fastpath_enabled()],
        "oneDNN": torch._C._get_mkldnn_enabled(),  # which products of bytes need
        "generator": torch.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "modes": torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
    }

def report(name):
    now = state()
    print(name, ", ".join(key for key in before if before[key] != now[key]) or "nothing")

before = state()
import exact
report("import:")
with exact.mode():
    report("block:")
    with exact.mode(seed=1):
        torch.rand(3)
    report("nested:")
report("after:")
outer, inner = exact.mode(), exact.mode()
outer.__enter__()
thread = threading.Thread(target=lambda: (inner.__enter__(), inner.__exit__(None, None, None)))
thread.start()
thread.join()
outer.__exit__(None, None, None)
report("after threads:")
try:
    with exact.mode():
        torch.digamma(torch.ones(3))
except exact.NotExactError:
    report("after an error:")
"""
CHANGES = "environment, Thread.start, schedules, hooks, attention, layers, modes"


def test_an_import_changes_nothing_and_a_block_leaves_nothing() -> None:
    printed = subprocess.check_output([sys.executable, "-c", STATES], text=True).splitlines()
    assert printed == [
        "import: nothing",
        f"block: {CHANGES}",  # the control
        f"nested: {CHANGES}",
        "after: nothing",
        "after threads: nothing",
        "after an error: nothing",
    ]


def test_what_another_library_has_wrapped_in_the_meantime_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with exact.mode():
        ours = threading.Thread.start

        def wrapped(thread: threading.Thread) -> None:
            ours(thread)

        monkeypatch.setattr(threading.Thread, "start", wrapped)
    assert threading.Thread.start is wrapped
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.digamma, W).result()


def test_compiled_code_runs_uncompiled_and_implementations_are_left_alone() -> None:
    compiled: list[object] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    function = torch.compile(lambda x: torch.tanh(x) @ x, backend=backend)
    with exact.mode():
        assert torch.equal(function(W), torch.tanh(W) @ W)
        assert not compiled
    function(W)
    assert compiled  # the control


def test_attention_stays_plain_until_the_last_thread_has_left() -> None:
    def plain() -> bool:
        return not torch.backends.cuda.flash_sdp_enabled()

    with ThreadPoolExecutor(1) as pool:
        first, second = exact.mode(), exact.mode()
        first.__enter__()
        pool.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert plain()
        pool.submit(second.__exit__, None, None, None).result()
    assert not plain()


def test_threads_that_are_started_in_a_block_are_in_it() -> None:
    def computed_by(pool: ThreadPoolExecutor) -> Tensor:
        return pool.submit(lambda: W @ W).result()

    with ThreadPoolExecutor(1) as pool:
        native = computed_by(pool)
        with exact.mode():
            exactly = W @ W
            assert torch.equal(computed_by(pool), native)  # the control: an older thread
    with exact.mode(seed=1), ThreadPoolExecutor(1) as pool:
        assert torch.equal(computed_by(pool), exactly)
        with pytest.raises(exact.NotExactError, match=r"aten\.digamma"):
            pool.submit(lambda: W.digamma()).result()
        # Whose turn it is to draw would be a matter of time.
        with pytest.raises(exact.NotExactError, match="seed"):
            pool.submit(torch.rand, 3).result()
    assert not torch.equal(exactly, native)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(computed_by(pool), native)


def test_an_optimiser_in_a_thread_outside_the_block_is_left_alone() -> None:
    def step() -> None:
        parameter = nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        optim.Adafactor([parameter]).step()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(step).result()
        with exact.mode():
            pool.submit(step).result()
            with pytest.raises(exact.NotExactError, match="Adafactor"):  # the control
                step()
