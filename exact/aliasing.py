"""Tensors that share memory with the one that an operation writes to.

Where an operand and the output overlap, threads and vector instructions decide whether an
operation reads the old number or the new one. So what it reads is copied first, and an
operation that would write one place in memory twice is refused.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from exact.errors import NotExactError

__all__ = ["separated", "writes_numbers"]


def writes_numbers(operation: Any) -> bool:
    """Whether the operation changes the numbers of an argument, and not a view alone."""
    return bool(operation._schema.is_mutable) and torch.Tag.inplace_view not in operation.tags


def separated(operation: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called with copies of the operands that lie in the memory it writes to."""
    names = [argument.name for argument in operation._schema.arguments if argument.is_out]

    def called(*args: Any, **kwargs: Any) -> Any:
        outs = [kwargs[name] for name in names if name in kwargs]
        kept, operands = ((), args) if outs else (args[:1], args[1:])
        written = outs or (args[0] if isinstance(args[0], (list, tuple)) else args[:1])
        if any(_overlaps_itself(x) for x in written if not x.is_contiguous()):
            raise NotExactError(
                f"{operation} writes to a view of which several elements are one in memory"
            )
        memory = sorted(_extent(x) for x in written if not x.is_meta)
        if any(after[0] < before[1] for before, after in pairwise(memory)):
            raise NotExactError(f"{operation} writes to tensors of which some share their memory")
        return function(*kept, *(_copied(y, memory) for y in operands), **kwargs)

    return called


def _copied(y: Any, memory: list[tuple[int, int]]) -> Any:
    """The operand, or a copy of it where it overlaps with the memory."""
    if isinstance(y, (list, tuple)):
        return [_copied(item, memory) for item in y]
    if not isinstance(y, Tensor):
        return y
    start, end = _extent(y)
    return y.clone() if any(start < other[1] and other[0] < end for other in memory) else y


def _extent(x: Tensor) -> tuple[int, int]:
    """The addresses where the first number of x begins and the last one ends."""
    start = x.data_ptr()
    steps = x.numel() - 1
    if not x.is_contiguous():
        steps = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return start, start + (steps + 1) * x.element_size()


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of x may be one in memory."""
    end = 1
    for stride, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n > 1 and stride < end:
            return True
        end += (n - 1) * stride
    return False
