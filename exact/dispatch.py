"""A mode under which plain PyTorch code computes the same bits on every machine.

    with exact.mode():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

Below autograd, PyTorch is a stream of small operations. Each meets one of two tables:
operations that are exact as they are, since they move, compare or round single
numbers by IEEE 754; and operations with an exact form of ours. Any other raises
NotExactError. So no operation can slip in that nobody has looked at.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from threading import Lock, Thread
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from exact import draws, forms, functions, layers, machine, optimizers
from exact.errors import NotExactError

__all__ = ["mode"]

aten = torch.ops.aten


@contextlib.contextmanager
def mode(seed: int | None = None) -> Iterator[None]:
    """Compute exactly within the block, and in threads that are started in it.

    PyTorch's random operations follow from the seed, or from a generator that they are given.
    Raises NotExactError where an operation has no exact form, and MachineError where
    the machine does not keep the rules of IEEE 754 that exactness rests on.
    """
    machine.check()
    table = FORMS | (draws.UNSEEDED if seed is None else draws.FORMS)
    with contextlib.nullcontext() if seed is None else draws.seeded(seed), _entered() as active:
        outer, active.forms = active.forms, table
        try:
            yield
        finally:
            if _active() is not active or active.forms is not table:
                raise NotExactError(
                    "blocks that overlap end in the order in which they began, as of coroutines or"
                    " generators: some of their arithmetic was not exact; nest them"
                )
            active.forms = outer
            optimizers.restore()
    machine.check()  # as the block may have changed a thread's mode


@contextlib.contextmanager
def _entered() -> Iterator["_Mode"]:
    """The mode that this thread is in, or a new one."""
    if active := _active():
        yield active
    else:
        with _PLAIN_ATTENTION, _Mode(FORMS | draws.UNSEEDED) as active:
            yield active


class _Shared:
    """A context of the whole process: the first thread to come enters it, the last leaves it."""

    def __init__(self, context: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._context, self._inside = context, 0
        self._lock, self._stack = Lock(), contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stack.enter_context(self._context())
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stack.close()


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in its plain form: fused kernels sum in an order of their own."""
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


_PLAIN_ATTENTION = _Shared(_plain_attention)


def _active() -> "_Mode | None":
    stack = _get_current_dispatch_mode_stack()
    return next((mode for mode in stack if isinstance(mode, _Mode)), None)


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else each operation passes a wrapper that keeps torch.compile out, which costs
        # as much as the operation; `set_code_exec_strategy` below does so at no cost.
        return False

    def __init__(self, forms: dict[Any, Callable[..., Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forms = forms
        self._known: set[tuple[torch.dtype, torch.device]] = set()  # once checked
        self._plain: set[tuple[torch.dtype, torch.layout]] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        form = self.forms.get(func)
        for kind in types:
            if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
                if func is torch.ops.prim.device.default:
                    return func(*args)  # asked from C++, where an error would end the process
                raise NotExactError(
                    f"{func} of {kind.__name__}, a subclass with a __torch_dispatch__ of its own:"
                    " exact are plain tensors"
                )
        if form is None:
            return self._by_parts(func, args, kwargs or {})
        if func in _WRITING:
            args = _apart(func, args, kwargs or {})
        for x in args:
            if isinstance(x, Tensor) and (x.dtype, x.layout) not in self._plain:
                self._require_plain(func, x)
        result = form(*args, **(kwargs or {}))
        touched = args[0] if result is None and args else result  # updates in place return nothing
        for x in touched if isinstance(touched, (list, tuple)) else (touched,):
            if isinstance(x, Tensor) and (x.dtype, x.device) not in self._known:
                self._require_real_numbers(func, x)
        return result

    def _by_parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation without a form is made of, as it comes in inference mode."""
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise NotExactError(
                f"{func} has no exact form: use other operations, or leave exact mode for it"
            )
        return result

    def _require_plain(self, func: Any, x: Tensor) -> None:
        # Only what comes from outside the block can be such, and may give real, dense results.
        if x.is_complex() or x.is_quantized or x.layout is not torch.strided:
            raise NotExactError(f"{func} of {x.dtype}, {x.layout}: exact are dense real numbers")
        self._plain.add((x.dtype, x.layout))

    def _require_real_numbers(self, func: Any, x: Tensor) -> None:
        if x.dtype not in _TYPES or x.device.type not in ("cpu", "cuda", "meta"):
            raise NotExactError(
                f"{func} gives {x.dtype} on {x.device.type}: exact are real numbers of 32 and 64"
                " bits, integers and booleans, on cpu and cuda"
            )
        if x.device.type == "cuda":
            machine.check("cuda")
        self._known.add((x.dtype, x.device))


_TYPES = {
    torch.float32, torch.float64, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
}  # fmt: skip

# Exact as they are, in every overload: views, copies and casts; construction;
# comparison and choice; integers; and + - × of two numbers each, which IEEE 754
# defines to the last bit.
_NAMES = """
    alias as_strided detach expand lift_fresh permute select slice split split_with_sizes
    squeeze t transpose unbind unfold unsqueeze view _unsafe_view _reshape_alias diagonal
    squeeze_ t_ transpose_ unsqueeze_ unsafe_split unsafe_split_with_sizes repeat set_
    clone contiguous fill_ zero_
    full full_like new_full new_ones new_zeros ones ones_like zeros zeros_like scalar_tensor eye
    _local_scalar_dense
    eq ne lt le gt ge isnan isinf where masked_fill masked_fill_ any all equal is_same_size
    nonzero masked_select index_fill index_fill_
    logical_and logical_or logical_not logical_xor
    logical_and_ logical_or_ logical_not_ logical_xor_
    bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift
    bitwise_and_ bitwise_or_ bitwise_xor_ bitwise_not_
    __lshift__ __rshift__ __and__ __or__ __xor__
    abs abs_ neg neg_ sign sgn threshold_backward argmax argmin
    floor ceil trunc
    gather embedding cat stack constant_pad_nd flip roll tril triu
    select_backward slice_backward mul mul_
"""
EXACT = set(forms.overloads(_NAMES)) | {
    aten.round.default,
    # Marks of the profiler, without arithmetic, which optimizers set.
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
}
FORMS: dict[Any, Callable[..., Any]] = (
    {operation: operation for operation in EXACT} | forms.FORMS | layers.FORMS
)
_WRITING = {  # numbers, not a view alone: in place, or to arguments of these names
    operation: [argument.name for argument in operation._schema.arguments if argument.is_out]
    for operation in FORMS | draws.FORMS
    if operation._schema.is_mutable and torch.Tag.inplace_view not in operation.tags
}


def _apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments, with copies of those that lie in the memory that is written to.

    Where both overlap, threads and vectors decide whether what is read is old or new.
    """
    outs = [kwargs[name] for name in _WRITING[func] if name in kwargs]
    kept, read = ((), args) if outs else (args[:1], args[1:])
    written = outs or (args[0] if isinstance(args[0], (list, tuple)) else args[:1])
    if any(_is_folded(x) for x in written if not x.is_contiguous()):
        raise NotExactError(f"{func} writes to a view of which several places are one in memory")
    memory = sorted(map(_extent, written))
    if any(after[0] < before[1] for before, after in pairwise(memory)):
        raise NotExactError(f"{func} writes to tensors of which some share their memory")

    def apart(y: Any) -> Any:
        if isinstance(y, (list, tuple)):
            return [apart(each) for each in y]
        if not isinstance(y, Tensor):
            return y
        start, end = _extent(y)
        return y.clone() if any(start < other[1] and other[0] < end for other in memory) else y

    return *kept, *map(apart, read)


def _extent(x: Tensor) -> tuple[int, int]:
    """The addresses where the first number of x begins and the last one ends."""
    start = x.data_ptr()
    steps = x.numel() - 1
    if not x.is_contiguous():
        steps = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return start, start + (steps + 1) * x.element_size()


def _is_folded(x: Tensor) -> bool:
    """Whether two places of x may be one in memory."""
    end = 1
    for stride, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n > 1 and stride < end:
            return True
        end += (n - 1) * stride
    return False


def _inherited(start: Callable[[Thread], None]) -> Callable[[Thread], None]:
    """Let a thread be in the block that it is started in: PyTorch's modes end at their thread."""

    @functools.wraps(start)
    def inheriting(thread: Thread) -> None:
        if _active():
            run = thread.run

            def run_exactly() -> None:
                with _entered():
                    run()

            thread.run = run_exactly  # type: ignore[method-assign]
        start(thread)

    return inheriting


def _in_block(hook: Callable[..., None]) -> Callable[..., None]:
    def guarded(*args: Any) -> None:
        if _active():
            hook(*args)

    return guarded


def _cos(x: float) -> float:
    return functions.cos(x) if _active() else math.cos(x)


_SKIP = eval_frame._FrameAction.SKIP
eval_frame.set_code_exec_strategy(  # torch.compile leaves the forms alone, and all that they call
    _Mode.__torch_dispatch__.__code__, eval_frame._FrameExecStrategy(_SKIP, _SKIP)
)
# Schedules take the cosine from Python, which has it from the platform's library.
vars(lr_scheduler)["math"] = SimpleNamespace(**vars(math) | {"cos": _cos})
Thread.start = _inherited(Thread.start)  # type: ignore[assignment,method-assign]
register_optimizer_step_pre_hook(_in_block(optimizers.before_step))
register_optimizer_step_post_hook(_in_block(optimizers.after_step))
