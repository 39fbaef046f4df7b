"""Variants of an operation: in place, into a given tensor, and on a list of tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

__all__ = ["Implementation", "count_change", "foreach", "in_place", "into"]

Implementation = Callable[..., Any]


def in_place(function: Any) -> Callable[..., Tensor]:
    """The function, whose result replaces the content of its first argument."""

    def replacing(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _assign(x, function(x, *args, **kwargs))

    return replacing


def _assign(x: Tensor, result: Tensor) -> Tensor:
    if not torch.can_cast(result.dtype, x.dtype):
        raise RuntimeError(f"result type {result.dtype} cannot be cast to {x.dtype}")
    return x.copy_(result)


def into(function: Implementation, outs: list[str]) -> Implementation:
    """The function, whose results are written to the keyword arguments `outs`."""

    def writing(*args: Any, **kwargs: Any) -> Any:
        targets = tuple(kwargs.pop(name) for name in outs)
        results = function(*args, **kwargs)
        for x, result in zip(targets, results if len(outs) > 1 else (results,), strict=True):
            _assign(x if x.shape == result.shape else x.resize_(result.shape), result)
        return targets if len(outs) > 1 else targets[0]

    return writing


def foreach(function: Implementation) -> Implementation:
    """The function for lists of tensors; other operands are lists as long, or one for all."""

    def by_element(xs: list[Tensor], *others: Any, **kwargs: Any) -> list[Any]:
        columns = [y if isinstance(y, list) else [y] * len(xs) for y in others]
        return [function(*row, **kwargs) for row in zip(xs, *columns, strict=True)]

    return by_element


def count_change(function: Implementation) -> Implementation:
    """The function, which changes a list of tensors, and a step of their version counters.

    Below autograd PyTorch does not count it; marks of bytes and saved tensors rely on it.
    """

    def counted(xs: list[Tensor], *others: Any, **kwargs: Any) -> None:
        function(xs, *others, **kwargs)
        increment_version([x for x in xs if not x.is_inference()])

    return counted
