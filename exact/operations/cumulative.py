"""Running sums, products and extremes along a dimension, and products as a whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid
from exact.operations.memory import to_copy
from exact.registry import exact_as_is, implements

exact_as_is("_cummax_helper _cummin_helper cummax cummin")


@implements("cumsum")
def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Of numbers on one grid for the whole row, on which no partial sum needs rounding."""
    x = _cast(x, dtype)
    if not x.is_floating_point() or not x.dim() or not x.numel():
        return torch.cumsum(x, dim, dtype=dtype) if x.dim() else x.clone()
    bits = grid.sum_bits(x.shape[dim])
    return torch.cumsum(grid.snap(x, grid.scale(x, [dim]), bits), dim).to(x.dtype)


@implements("cumprod")
def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    x = _cast(x, dtype)
    if not x.is_floating_point() or not x.dim():
        return torch.cumprod(x, dim, dtype=dtype) if x.dim() else x.clone()
    return _scan(torch.mul, x.double(), dim).to(x.dtype)


@implements("logcumsumexp")
def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    def add(a: Tensor, b: Tensor) -> Tensor:
        high, low = torch.maximum(a, b), torch.minimum(a, b)
        gap = torch.where(high == low, 0.0, low - high)
        return high + functions.log1p(functions.exp(gap))

    grid.require_floating_point(x)
    return _scan(add, x.double(), dim).to(x.dtype) if x.dim() else x.clone()


def _scan(combine: Callable[[Tensor, Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
    """The running combination, in steps of 1, 2, 4, … numbers, each elementwise."""
    x, n, step = x.clone(), x.shape[dim], 1
    while step < n:
        further = combine(x.narrow(dim, step, n - step), x.narrow(dim, 0, n - step))
        x = torch.cat([x.narrow(dim, 0, step), further], dim)
        step *= 2
    return x


@implements("prod")
def _prod(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _prod_along(x.flatten(), 0, dtype=dtype)


@implements("prod.dim_int")
def _prod_along(
    x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """In float64, in the order of the numbers' sizes: the order of the operands does not matter."""
    x = _cast(x, dtype)
    if not x.is_floating_point():
        return torch.prod(x, dim, keepdim, dtype=dtype)
    return product(x, dim, keepdim).to(x.dtype)


def product(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The product along a dimension in float64: of sorted numbers, pair by pair."""
    if not x.dim():
        return x.to(torch.float64, copy=True)
    y = torch.sort(x.double(), dim=dim, stable=True).values
    while (n := y.shape[dim]) > 1:
        pairs = y.narrow(dim, 0, n // 2) * y.narrow(dim, n - n // 2, n // 2)
        y = torch.cat([pairs, y.narrow(dim, n // 2, n % 2)], dim)
    y = (
        y
        if y.shape[dim]
        else y.new_ones([1 if i == dim % y.dim() else n for i, n in enumerate(y.shape)])
    )
    return y if keepdim else y.squeeze(dim)


def _cast(x: Tensor, dtype: Any) -> Tensor:
    return x if dtype is None else to_copy(x, dtype=dtype)
