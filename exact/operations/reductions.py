"""Sums, means, norms, extremes and order along dimensions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid
from exact.errors import NotExactError
from exact.operations.memory import to_copy
from exact.registry import exact_as_is, implements, overloads, register

exact_as_is("any all argmax argmin nonzero masked_select index_fill")


def _dims(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims or [])


@implements("sum", "sum.dim_IntList")
def _sum(
    x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else to_copy(x, dtype=dtype)
    if not x.is_floating_point():
        return torch.sum(x, _dims(dims) or None, keepdim, dtype=dtype)
    return grid.sum(x, _dims(dims), keepdim).to(x.dtype)


@implements("mean", "mean.dim")
def _mean(
    x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else to_copy(x, dtype=dtype)
    grid.require_floating_point(x)
    return grid.mean(x, _dims(dims), keepdim).to(x.dtype)


@implements("linalg_vector_norm")
def vector_norm(
    x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """The Euclidean norm, as torch.linalg.vector_norm. Raises NotExactError for other orders."""
    if order != 2:
        raise NotExactError(
            f"the norm of order {order} has no exact implementation: that of order 2 has"
        )
    grid.require_floating_point(x)
    y = x.to(torch.float64, copy=True)
    return functions.sqrt(grid.sum(y.mul_(y), _dims(dims), keepdim)).to(dtype or x.dtype)


@implements("bincount")
def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    if weights is not None:
        raise NotExactError("bincount with weights has no exact implementation: use scatter_add")
    return torch.bincount(x, minlength=minlength)


def _normalize_signed_zero(operation: Any) -> Callable[..., Any]:
    """The operation, which chooses numbers: of 0 and -0, which are equal, it chooses either."""

    def normalized(*args: Any, **kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        for x in result if isinstance(result, tuple) else (result,):
            if x.is_floating_point():
                x.add_(0.0)  # makes 0 of -0
        return result

    return normalized


for operation in overloads("clamp clamp_min clamp_max maximum minimum max min amax amin aminmax"):
    register(operation, _normalize_signed_zero(operation))


@implements("sort", "sort.stable")
def _sort(
    x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Equal numbers stay in their order, whether or not this is asked for."""
    return torch.sort(x, dim=dim, descending=descending, stable=True)


@implements("topk")
def _topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, ordered: bool = True
) -> tuple[Tensor, ...]:
    """Of equal numbers those that come first; always in order."""
    columns = _sort(x, dim, descending=largest)
    return tuple(y.narrow(dim, 0, k).contiguous() if y.dim() else y for y in columns)
