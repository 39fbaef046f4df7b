"""Views, copies, casts and new tensors: operations that move numbers or write constants."""

import math
from typing import Any

import torch
from torch import Tensor

from exact import functions
from exact.bytes import propagate_bytes
from exact.registry import aten, exact_as_is, implements, overloads, register

__all__ = ["to_copy", "within"]

exact_as_is("""
    alias as_strided detach expand lift_fresh permute select slice split split_with_sizes
    squeeze t transpose unbind unfold unsqueeze view _unsafe_view _reshape_alias diagonal
    unsafe_split unsafe_split_with_sizes repeat set_ clone contiguous fill_.Scalar zero_
    full full_like new_full new_ones new_zeros ones ones_like zeros zeros_like scalar_tensor eye
    _local_scalar_dense gather embedding cat stack constant_pad_nd flip roll tril triu
    select_backward slice_backward lift lift_fresh_copy pixel_shuffle pixel_unshuffle rot90
    channel_shuffle block_diag _chunk_cat diag_embed take _pack_padded_sequence
    diagonal_backward unfold_backward as_strided_scatter diagonal_scatter select_scatter
    slice_scatter tril_indices triu_indices _is_all_true _is_any_true is_pinned _resize_output
    _has_same_storage_numel is_set_to
    alias_copy as_strided_copy detach_copy diagonal_copy expand_copy permute_copy
    _reshape_alias_copy select_copy slice_copy split_copy split_with_sizes_copy squeeze_copy t_copy
    transpose_copy unbind_copy unfold_copy unsqueeze_copy view_copy narrow_copy _reshape_copy
""")
for mark in (  # of the profiler, without arithmetic, which optimisers set
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
):
    register(mark, mark)


@implements("index.Tensor")
def _index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    return propagate_bytes(x, lambda y: aten.index.Tensor(y, indices))


@implements("_unsafe_index.Tensor")
def _unsafe_index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    return _index(x, indices)


@implements("_unsafe_masked_index")
def _unsafe_masked_index(
    x: Tensor, mask: Tensor, indices: list[Tensor | None], fill: float
) -> Tensor:
    return _index(x, within(x, indices)).masked_fill(~mask, fill)


def within(x: Tensor, indices: list[Tensor | None]) -> list[Tensor | None]:
    """The indices, of which those beyond x are its first or last."""
    return [
        None if index is None else index.clamp(-n, n - 1)
        for index, n in zip(indices, x.shape, strict=False)
    ]


@implements("index_select")
def _index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    return propagate_bytes(x, lambda y: aten.index_select.default(y, dim, index))


def _fill_uninitialized(x: Tensor) -> Tensor:
    """Fill with NaN, or -1 in an integer type: else memory holds whatever was there before."""
    return x.fill_(math.nan if x.is_floating_point() or x.is_complex() else -1)


def _initialized(operation: Any) -> Any:
    return lambda *args, **kwargs: _fill_uninitialized(operation(*args, **kwargs))


for operation in overloads(
    "empty empty_like empty_permuted empty_strided new_empty new_empty_strided"
):
    register(operation, _initialized(operation))


@implements("resize_")
def _resize_(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    def held() -> int:
        return x.untyped_storage().nbytes() // x.element_size()

    before = held()
    x.resize_(*args, **kwargs)
    _fill_uninitialized(x.as_strided((held() - before,), (1,), before))
    return x


@implements("_efficientzerotensor")
def _zeros(size: list[int], **options: Any) -> Tensor:
    """The zeros of forward derivatives, which PyTorch would not store."""
    return torch.zeros(size, **options)


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


@implements("linspace")
def linspace(start: float, end: float, steps: int, **options: Any) -> Tensor:
    """Numbers from start to end, from the nearer of which each is computed."""
    result = torch.empty(steps, **options)
    i = torch.arange(steps, device=result.device).double()
    step = (end - start) / max(steps - 1, 1)
    numbers = torch.where(i < steps // 2, i * step + start, (i - (steps - 1)) * step + end)
    return _copy_(result, numbers if steps != 1 else torch.full_like(numbers, start))


@implements("linspace.Tensor_Tensor", "linspace.Tensor_Scalar", "linspace.Scalar_Tensor")
def _linspace_of_tensors(start: Any, end: Any, steps: int, **options: Any) -> Tensor:
    return linspace(float(start), float(end), steps, **options)


@implements("logspace")
def _logspace(start: float, end: float, steps: int, base: float = 10.0, **options: Any) -> Tensor:
    exponents = linspace(start, end, steps, dtype=torch.float64, device=options.get("device"))
    powers = functions.pow(torch.full_like(exponents, base), exponents)
    return _copy_(torch.empty(steps, **options), powers)


@implements("logspace.Tensor_Tensor", "logspace.Tensor_Scalar", "logspace.Scalar_Tensor")
def _logspace_of_tensors(start: Any, end: Any, *args: Any, **options: Any) -> Tensor:
    return _logspace(float(start), float(end), *args, **options)


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
