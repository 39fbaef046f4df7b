"""What the mode changes in the process: from the first block's begin to the last one's end.

`import exact` changes nothing. The table in README.md has a row for each change.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from threading import Lock, RLock, Thread
from typing import Any

import torch
from torch import _VF
from torch._C._dynamo import eval_frame
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from exact import optimizers
from exact.dispatch import ExactMode, active
from exact.schedules import exact_cosine, exact_powers

__all__ = ["entered"]


@contextlib.contextmanager
def entered() -> Iterator[ExactMode]:
    """The mode that this thread is in, or a new one."""
    if current := active():
        yield current
    else:
        with _PATCHES, ExactMode() as current:
            try:
                yield current
            finally:
                optimizers.restore()


class _Shared:
    """A context of the whole process: the first thread to come enters it, the last leaves it."""

    def __init__(self, *contexts: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._contexts, self._inside = contexts, 0
        self._lock, self._stack = Lock(), contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                with contextlib.ExitStack() as stack:
                    for context in self._contexts:
                        stack.enter_context(context())
                    self._stack = stack.pop_all()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stack.close()


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention in its plain form: fused kernels sum in an order of their own."""
    # Not by `sdpa_kernel`, which has to be left by the thread that entered it.
    switches = torch.backends.cuda  # of other devices, too
    kinds = ("flash", "mem_efficient", "cudnn", "math")
    before = {kind: getattr(switches, f"{kind}_sdp_enabled")() for kind in kinds}

    def switch(to: dict[str, bool]) -> None:
        for kind in kinds:
            getattr(switches, f"enable_{kind}_sdp")(to[kind])

    switch({kind: kind == "math" for kind in kinds})
    try:
        yield
    finally:
        switch(before)


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Compute LSTMs, and encoders without gradients, as sequences of operations, not fused."""
    lstm, lock = _VF.lstm, RLock()
    fast = torch.backends.mha.get_fastpath_enabled()

    def plain_lstm(*args: Any) -> Any:
        if not active():
            return lstm(*args)
        # For this call alone: oneDNN also computes the products of bytes, many times as fast.
        with lock:
            fused = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
            try:
                return lstm(*args)
            finally:
                torch._C._set_mkldnn_enabled(fused)

    _VF.lstm = plain_lstm  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        _VF.lstm = lstm
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def inheriting_threads() -> Iterator[None]:
    """Let a thread be in the block that it is started in: PyTorch's modes are per thread."""
    original = Thread.start

    @functools.wraps(original)
    def start(thread: Thread) -> None:
        if active():
            run = thread.run

            def run_exactly() -> None:
                with entered():
                    run()

            thread.run = run_exactly  # type: ignore[method-assign]
        original(thread)

    Thread.start = start  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        if Thread.start is start:  # else another library has wrapped it since
            Thread.start = original  # type: ignore[method-assign]


@contextlib.contextmanager
def optimizer_hooks() -> Iterator[None]:
    """Make the powers of optimisers exact during their steps."""

    def within(hook: Callable[..., None]) -> Callable[..., None]:
        def guarded(*args: Any) -> None:
            if active():
                hook(*args)

        return guarded

    def begin(optimizer: Any, args: Any, kwargs: Any) -> None:
        optimizers.before_step(optimizer, args, kwargs)
        if (mode := active()) and mode.recording:
            given = (*args[1:], *kwargs.values())
            mode.recording.begin_update(optimizer, closure=any(x is not None for x in given))

    def end(optimizer: Any, args: Any, kwargs: Any) -> None:
        optimizers.after_step(optimizer, args, kwargs)
        if (mode := active()) and mode.recording:
            mode.recording.end_update()

    before = register_optimizer_step_pre_hook(within(begin))
    after = register_optimizer_step_post_hook(within(end))
    with before, after:
        yield


@contextlib.contextmanager
def skip_compilation() -> Iterator[None]:
    """Let torch.compile skip the mode's function and all that it calls."""

    def set_action(action: Any) -> None:
        strategy = eval_frame._FrameExecStrategy(action, action)
        eval_frame.set_code_exec_strategy(ExactMode.__torch_dispatch__.__code__, strategy)

    set_action(eval_frame._FrameAction.SKIP)
    try:
        yield
    finally:
        set_action(eval_frame._FrameAction.DEFAULT)


@contextlib.contextmanager
def full_float64() -> Iterator[None]:
    """Tell cuBLAS not to emulate float64 by fewer bits. It reads this when it starts."""
    name = "CUBLAS_EMULATE_DOUBLE_PRECISION"
    ours = name not in os.environ
    if ours:
        os.environ[name] = "0"
    try:
        yield
    finally:
        if ours:
            os.environ.pop(name, None)


_PATCHES = _Shared(
    plain_attention,
    plain_layers,
    inheriting_threads,
    exact_cosine,
    exact_powers,
    optimizer_hooks,
    skip_compilation,
    full_float64,
)
