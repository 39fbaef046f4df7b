"""Which operations have a kernel, and which tensors a kernel can read."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact.kernels.shared_library import library
from exact.registry import named

__all__ = ["KERNELS", "find", "is_float", "is_plain", "kernel"]

Kernel = Callable[..., Any]
KERNELS: dict[Any, Kernel] = {}


def find(operation: Any) -> Kernel | None:
    """The kernel of the operation, which returns None where it declines."""
    kernel, compiled = KERNELS.get(operation), library()
    return None if kernel is None or compiled is None else functools.partial(kernel, compiled)


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Register a function of the library and the operation's arguments; None declines."""

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
