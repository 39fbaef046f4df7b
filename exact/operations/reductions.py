"""Sums, means, variances and norms along dimensions."""

import math
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid
from exact.operations.memory import to_copy
from exact.registry import implements

__all__ = ["moments", "vector_norm"]


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


@implements("nansum")
def _nansum(
    x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else to_copy(x, dtype=dtype)
    return _sum(x.masked_fill(x.isnan(), 0), dims, keepdim)


@implements("trace")
def _trace(x: Tensor) -> Tensor:
    return _sum(x.diagonal())


@implements("logsumexp")
def _logsumexp(x: Tensor, dims: Any, keepdim: bool = False) -> Tensor:
    y = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    dims = _dims(dims) if y.dim() else []
    if not y.numel():
        return functions.log(grid.sum(y, dims, keepdim)).to(y.dtype)
    largest = y.double().amax(dims, keepdim=True)
    largest = torch.where(largest.isinf(), 0.0, largest)
    total = functions.log(grid.sum(functions.exp(y.double() - largest), dims, keepdim=True))
    result = (total + largest).to(y.dtype)
    return result if keepdim or not y.dim() else _squeezed(result, dims)


def _squeezed(x: Tensor, dims: list[int]) -> Tensor:
    return x.squeeze(dims or list(range(x.dim())))


@implements("var_mean.correction")
def _var_mean(
    x: Tensor, dims: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    variance, mean = moments(x, _dims(dims), correction, keepdim)
    return variance.to(x.dtype), mean.to(x.dtype)


@implements("std_mean.correction")
def _std_mean(
    x: Tensor, dims: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    variance, mean = moments(x, _dims(dims), correction, keepdim)
    return functions.sqrt(variance).to(x.dtype), mean.to(x.dtype)


@implements("var.correction")
def _var(x: Tensor, dims: Any = None, **options: Any) -> Tensor:
    return _var_mean(x, dims, **options)[0]


@implements("std.correction")
def _std(x: Tensor, dims: Any = None, **options: Any) -> Tensor:
    return _std_mean(x, dims, **options)[0]


def moments(
    x: Tensor, dims: list[int], correction: float | None, keepdim: bool
) -> tuple[Tensor, Tensor]:
    """Variance and mean along the dimensions, in float64. `correction` is by default 1."""
    grid.require_floating_point(x)
    dims = dims if x.dim() else []
    mean = grid.mean(x, dims, keepdim=True)
    centred = x.double() - mean
    squares = grid.sum(centred * centred, dims, keepdim)
    n = x.numel() // max(squares.numel(), 1)
    freedom = max(n - (1 if correction is None else correction), 0)
    variance = squares / torch.full_like(squares, freedom)
    return variance, mean.view(variance.shape)


@implements("linalg_vector_norm")
def vector_norm(
    x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """The norm of any order, as torch.linalg.vector_norm."""
    grid.require_floating_point(x)
    x = x if dtype is None else x.to(dtype)
    y, dims = x.to(torch.float64, copy=True), _dims(dims) if x.dim() else []
    if order == 2:
        return functions.sqrt(grid.sum(y.mul_(y), dims, keepdim)).to(x.dtype)
    if math.isinf(order):
        if not y.numel() and order > 0:
            return grid.sum(y, dims, keepdim).to(x.dtype)
        return (y.abs().amax if order > 0 else y.abs().amin)(dims, keepdim=keepdim).to(x.dtype)
    if order == 0:
        return grid.sum((y != 0).double(), dims, keepdim).to(x.dtype)
    if order == 1:
        return grid.sum(y.abs(), dims, keepdim).to(x.dtype)
    zero = y == 0  # whose negative power would be infinite
    powers = functions.pow(y.abs(), y.new_full((), order)).masked_fill_(zero, 0)
    result = functions.pow(grid.sum(powers, dims, keepdim), y.new_full((), 1 / order))
    if order < 0 and y.numel():
        result = result.masked_fill(zero.any(dims or None, keepdim), 0)
    return result.to(x.dtype)


@implements("norm.Scalar")
def _norm(x: Tensor, order: float = 2) -> Tensor:
    return vector_norm(x, order)


@implements("norm.ScalarOpt_dim")
def _norm_along(x: Tensor, order: float | None, dims: Any, keepdim: bool = False) -> Tensor:
    return vector_norm(x, 2 if order is None else order, dims, keepdim)


@implements("norm.ScalarOpt_dim_dtype")
def _norm_along_of_dtype(
    x: Tensor, order: float | None, dims: Any, keepdim: bool, *, dtype: Any
) -> Tensor:
    return vector_norm(x, 2 if order is None else order, dims, keepdim, dtype=dtype)


@implements("norm.ScalarOpt_dtype")
def _norm_of_dtype(x: Tensor, order: float | None, *, dtype: Any) -> Tensor:
    return vector_norm(x, 2 if order is None else order, dtype=dtype)


@implements("dist")
def _dist(x: Tensor, y: Tensor, order: float = 2) -> Tensor:
    return vector_norm(x - y, order)


@implements("bincount")
def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    if weights is not None:
        weights = weights if weights.is_floating_point() else weights.double()
        n = max(minlength, int(x.max()) + 1 if x.numel() else 0)
        return grid.segment_sum(weights, x.long(), n).to(weights.dtype)
    return torch.bincount(x, minlength=minlength)
