"""Updates of many tensors in one call, by which optimisers step.

Most are derived from the operation on one tensor. Here are those that PyTorch computes
faster as a whole, being exact, and the norm, whose name is another.
"""

from typing import Any

import torch
from torch import Tensor

from exact.operations.pointwise import add, add_
from exact.operations.reductions import vector_norm
from exact.registry import aten, implements, register
from exact.variants import count_change, foreach

register(aten._foreach_mul.Scalar, aten._foreach_mul.Scalar)
register(aten._foreach_mul_.Scalar, count_change(aten._foreach_mul_.Scalar))


def _alike(xs: list[Tensor], ys: list[Tensor]) -> bool:
    pairs = zip(xs, ys, strict=True)
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.is_floating_point() for x, y in pairs
    )


@implements("_foreach_add.List")
def _foreach_add(xs: list[Tensor], ys: list[Tensor], *, alpha: float = 1) -> Any:
    if alpha == 1:
        return torch._foreach_add(xs, ys)
    if not _alike(xs, ys):
        return foreach(add)(xs, ys, alpha=alpha)
    products = torch._foreach_mul(ys, alpha)
    torch._foreach_add_(products, xs)  # which nobody else holds
    return products


@implements("_foreach_add_.List")
@count_change
def _foreach_add_(xs: list[Tensor], ys: list[Tensor], *, alpha: float = 1) -> None:
    if alpha == 1 or _alike(xs, ys):
        torch._foreach_add_(xs, ys if alpha == 1 else torch._foreach_mul(ys, alpha))
    else:
        foreach(add_)(xs, ys, alpha=alpha)


@implements("_foreach_norm.Scalar")
def _foreach_norm(
    xs: list[Tensor], order: float = 2, dtype: torch.dtype | None = None
) -> list[Tensor]:
    return [vector_norm(x, order, dtype=dtype) for x in xs]
