"""Views, copies, casts and new tensors: operations that move numbers or write constants."""

import math
from typing import Any

import torch
from torch import Tensor

from exact.bytes import propagate_bytes
from exact.registry import aten, exact_as_is, implements, overloads, register

__all__ = ["to_copy"]

exact_as_is("""
    alias as_strided detach expand lift_fresh permute select slice split split_with_sizes
    squeeze t transpose unbind unfold unsqueeze view _unsafe_view _reshape_alias diagonal
    unsafe_split unsafe_split_with_sizes repeat set_ clone contiguous fill_.Scalar zero_
    full full_like new_full new_ones new_zeros ones ones_like zeros zeros_like scalar_tensor eye
    _local_scalar_dense gather embedding cat stack constant_pad_nd flip roll tril triu
    select_backward slice_backward
""")
for mark in (  # of the profiler, without arithmetic, which optimisers set
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
):
    register(mark, mark)


@implements("index.Tensor")
def _index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    return propagate_bytes(x, lambda y: aten.index.Tensor(y, indices))


@implements("index_select")
def _index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    return propagate_bytes(x, lambda y: aten.index_select.default(y, dim, index))


def _fill_uninitialized(x: Tensor) -> Tensor:
    """Fill with NaN, or -1 in an integer type: else memory holds whatever was there before."""
    return x.fill_(math.nan if x.is_floating_point() or x.is_complex() else -1)


def _initialized(operation: Any) -> Any:
    return lambda *args, **kwargs: _fill_uninitialized(operation(*args, **kwargs))


for operation in overloads("empty empty_like empty_strided new_empty new_empty_strided"):
    register(operation, _initialized(operation))


@implements("resize_")
def _resize_(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    def held() -> int:
        return x.untyped_storage().nbytes() // x.element_size()

    before = held()
    x.resize_(*args, **kwargs)
    _fill_uninitialized(x.as_strided((held() - before,), (1,), before))
    return x


@implements("_to_copy")
def to_copy(x: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    """Cast x; what an integer type does not hold becomes 0 (NaN) or the nearest of its ends."""
    if dtype is not None and _to_integers(x, dtype):
        x = _clamped(x, dtype)
    result: Tensor = aten._to_copy(x, dtype=dtype, **options)
    return result


@implements("copy_")
def _copy_(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return x.copy_(_clamped(source, x.dtype) if _to_integers(source, x.dtype) else source)


@implements("fill_.Tensor")
def _fill_(x: Tensor, value: Tensor) -> Tensor:
    if value.dim():
        raise RuntimeError(f"expected one number to fill with, not {tuple(value.shape)}")
    return _copy_(x, value)


def _to_integers(x: Tensor, dtype: torch.dtype) -> bool:
    integers = not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool
    return x.is_floating_point() and integers


def _clamped(x: Tensor, dtype: torch.dtype) -> Tensor:
    # Which integer such a number becomes is left to the processor.
    limits = torch.iinfo(dtype)
    top = float(limits.max)
    if limits.bits == 64:
        top = math.nextafter(top, 0)  # as 2^63 - 1 is no float64
    y = x.double()
    return torch.where(y.isnan(), 0.0, y).clamp_(float(limits.min), top)


@implements("arange")
def _arange_from_0(end: float, **options: Any) -> Tensor:
    return _arange(0, end, **options)


@implements("arange.start", "arange.start_step")
def _arange(start: float, end: float, step: float = 1, **options: Any) -> Tensor:
    """Fractions as start + i · step in two operations, which the processor may not fuse."""
    result = torch.arange(start, end, step, **options)
    if not result.is_floating_point():
        return result
    steps = torch.arange(len(result), device=result.device).double()
    return result.copy_(steps.mul_(step).add_(start))
