"""Which operations have a kernel, and which tensors a kernel can read."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exact.kernels.shared_library import library
from exact.registry import named

__all__ = ["KERNELS", "KernelCall", "find", "is_float", "is_plain", "is_plain_int64", "kernel"]

Kernel = Callable[..., Any]
KERNELS: dict[Any, Kernel] = {}


class KernelCall(NamedTuple):
    """A call of a function of the library, which may be made as long as its memory is there."""

    function: Any
    arguments: tuple[Any, ...]  # addresses and integers
    results: Any  # the tensors that it writes
    kept: Any = None  # what else the addresses lead to, that is no argument of the operation
    marked: Tensor | None = None  # the argument of which it reads the bytes, and not the floats
    bytes_alone: tuple[Any, ...] = ()  # the arguments for which it writes a result's bytes alone

    def __call__(self) -> Any:
        """The results; None where the kernel declines these numbers."""
        return None if self.function(*self.arguments) else self.results


def find(operation: Any) -> Kernel | None:
    """The kernel of the operation: a function that returns what to call, results, or None.

    None where it declines. Results where the memory is not the arguments', as it made copies.
    """
    kernel, compiled = KERNELS.get(operation), library()
    return None if kernel is None or compiled is None else functools.partial(kernel, compiled)


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Register a function of the library and the operation's arguments, as `find` returns it."""

    def decorate(function: Kernel) -> Kernel:
        KERNELS.update({named(name): function for name in names})
        return function

    return decorate


# Loops, as generators would take longer than some kernels.


def is_float(*tensors: Tensor) -> bool:
    """Whether all are float32 on the CPU."""
    for x in tensors:  # noqa: SIM110
        if not (x.dtype is torch.float32 and x.is_cpu):
            return False
    return True


def is_plain(*tensors: Tensor) -> bool:
    """The same, and contiguous, and none is empty."""
    for x in tensors:
        if not (x.dtype is torch.float32 and x.is_cpu and x.is_contiguous() and x.numel()):
            return False
    return True


def is_plain_int64(x: Tensor) -> bool:
    """Whether it is contiguous, of int64, on the CPU."""
    return x.dtype is torch.int64 and x.is_cpu and x.is_contiguous()
