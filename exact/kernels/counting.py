"""Kernels of what accuracy is made of."""

from typing import Any

import torch
from torch import Tensor

from exact.kernels.registry import KernelCall, is_plain, is_plain_int64, kernel


@kernel("argmax")
def _argmax(
    library: Any, x: Tensor, dim: int | None = None, keepdim: bool = False
) -> KernelCall | None:
    if dim is None or keepdim or x.dim() != 2 or dim % 2 != 1 or not is_plain(x):
        return None
    out = torch.empty(len(x), dtype=torch.int64)
    return KernelCall(library.argmax, (x.data_ptr(), *x.shape, out.data_ptr()), out)


@kernel("eq.Tensor")
def _equal(library: Any, x: Tensor, y: Tensor) -> KernelCall | None:
    if not (is_plain_int64(x) and is_plain_int64(y) and x.shape == y.shape):
        return None
    out = torch.empty(x.shape, dtype=torch.bool)
    return KernelCall(library.equal, (x.data_ptr(), y.data_ptr(), x.numel(), out.data_ptr()), out)


@kernel("sum")
def _count(library: Any, x: Tensor, **dtype: Any) -> KernelCall | None:
    if dtype or x.dtype is not torch.bool or not (x.is_cpu and x.is_contiguous()):
        return None
    out = torch.empty((), dtype=torch.int64)
    return KernelCall(library.count, (x.data_ptr(), x.numel(), out.data_ptr()), out)
