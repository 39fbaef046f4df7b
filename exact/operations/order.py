"""Extremes, sorting, order statistics and search: operations that compare and choose."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact.registry import aten, exact_as_is, implements, overloads, register

exact_as_is("""
    any all argmax argmin nonzero nonzero_static masked_select index_fill count_nonzero isin
    searchsorted bucketize unique_dim unique_consecutive unique_dim_consecutive allclose
    repeat_interleave
""")


def _normalize_signed_zero(operation: Any) -> Callable[..., Any]:
    """The operation, which chooses numbers: of 0 and -0, which are equal, it chooses either."""

    def normalized(*args: Any, **kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        for x in result if isinstance(result, tuple) else (result,):
            if x.is_floating_point():
                x.add_(0.0)  # makes 0 of -0
        return result

    return normalized


for operation in overloads(
    "clamp clamp_min clamp_max maximum minimum max min amax amin aminmax fmax fmin"
):
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


@implements("kthvalue")
def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Of equal numbers, the one that stands k-th in their order."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, indices = (y.narrow(dim, k - 1, 1) for y in _sort(x, dim))
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


@implements("median.dim")
def _median(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower of two in the middle, or NaN if there is one."""
    return _middle(x, dim, keepdim, skip_nan=False)


@implements("nanmedian.dim")
def _nanmedian(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _middle(x, dim, keepdim, skip_nan=True)


def _middle(x: Tensor, dim: int, keepdim: bool, skip_nan: bool) -> tuple[Tensor, Tensor]:
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, indices = _sort(x, dim)
    n, missing = x.shape[dim], x.isnan().sum(dim, keepdim=True)  # NaN comes last
    middle = (n - missing - 1).clamp(min=0) // 2
    if not skip_nan:
        middle = torch.where(missing > 0, n - missing, middle)
    values, indices = values.gather(dim, middle), indices.gather(dim, middle)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


@implements("median")
def _median_of_all(x: Tensor) -> Tensor:
    return _median(x.flatten(), 0)[0] if x.numel() else aten.median.default(x)


@implements("nanmedian")
def _nanmedian_of_all(x: Tensor) -> Tensor:
    return _nanmedian(x.flatten(), 0)[0] if x.numel() else aten.nanmedian.default(x)


@implements("_unique2")
def _unique(
    x: Tensor, in_order: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    y = x + 0.0 if x.is_floating_point() else x  # 0 and -0 are one number
    return aten._unique2.default(y, True, return_inverse, return_counts)
