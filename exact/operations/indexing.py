"""Operations that write to given indices: scatter, index_put, index_add and reductions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from exact import grid
from exact.operations.memory import within
from exact.registry import aten, exact_as_is, implements

__all__ = ["index_add", "scatter_add", "scatter_last"]

exact_as_is("scatter.value masked_scatter masked_scatter_backward")


@implements("scatter_add")
def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """X plus the numbers of `source` at their indices along `dim`, as torch.scatter_add."""
    return _scatter(_accumulate, x, dim, index, source)


@implements("scatter.src")
def scatter_last(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """X with the numbers of `source` at their indices along `dim`; the last one wins."""
    return _scatter(_put, x, dim, index, source)


def _scatter(
    combine: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
) -> Tensor:
    if not index.numel():
        return x.clone()  # whatever the shapes are
    if not x.dim():
        return combine(x, index, source)
    if not index.dim():
        index, source = index.unsqueeze(0), source.unsqueeze(0) if not source.dim() else source
    used = tuple(slice(n) for n in index.shape)
    others = tuple(slice(None) if i == dim % x.dim() else part for i, part in enumerate(used))
    return combine(x, _flat_indices(x)[others].gather(dim, index), source[used])


@implements("index_add")
def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """X plus the slices of `source` at their indices along `dim`, as torch.index_add."""
    source = source if alpha == 1 else source * alpha
    return _accumulate(x, _flat_indices(x).index_select(dim, index), source)


@implements("index_copy")
def _index_copy(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    flat = _flat_indices(x).index_select(dim, index)
    return _put(x, flat, source.expand(flat.shape) if source.dim() else source.view(flat.shape))


@implements("put")
def _put_flat(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    flat = torch.where(index < 0, index + x.numel(), index)
    return (_accumulate if accumulate else _put)(x, flat, source.reshape(index.shape))


@implements("_unsafe_masked_index_put_accumulate")
def _unsafe_masked_index_put(
    x: Tensor, mask: Tensor, indices: list[Tensor | None], values: Tensor
) -> Tensor:
    return _index_put(x, within(x, indices), values.masked_fill(~mask, 0), accumulate=True)


@implements("scatter_reduce.two")
def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    def combine(x: Tensor, indices: Tensor, source: Tensor) -> Tensor:
        return _reduced(x, indices, source, reduce, include_self)

    return _scatter(combine, x, dim, index, source)


@implements("scatter.reduce")
def _scatter_by_name(x: Tensor, dim: int, index: Tensor, source: Tensor, *, reduce: str) -> Tensor:
    return _scatter_reduce(x, dim, index, source, {"add": "sum", "multiply": "prod"}[reduce])


@implements("scatter.value_reduce")
def _scatter_number(x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    source = torch.full(index.shape, value, dtype=x.dtype, device=x.device)
    return _scatter_by_name(x, dim, index, source, reduce=reduce)


@implements("index_reduce")
def _index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    flat = _flat_indices(x).index_select(dim, index)
    return _reduced(x, flat, source.expand(flat.shape), reduce, include_self)


def _reduced(x: Tensor, indices: Tensor, source: Tensor, reduce: str, include_self: bool) -> Tensor:
    """X with the sum, product, mean or extreme of what goes to each index, and of x itself."""
    _require_match(x, indices, source)
    index, items, flat = indices.flatten(), source.flatten(), x.flatten()
    counts = torch.bincount(index, minlength=x.numel())
    if reduce == "prod":
        index, items = _by_value(index, items)
    start = {"sum": 0, "mean": 0, "prod": 1, "amax": -math.inf, "amin": math.inf}[reduce]
    if not include_self:
        empty = start if x.is_floating_point() or math.isfinite(start) else _end(x, start)
        flat = torch.where(counts > 0, torch.full_like(flat, empty), flat)
    if reduce in ("amax", "amin"):
        result = flat.scatter_reduce(0, index, items, reduce)
        return (result.add_(0.0) if x.is_floating_point() else result).view(x.shape)
    if reduce == "prod":
        return _multiplied(flat, index, items).view(x.shape)
    sums = _accumulate(flat, index, items)
    if reduce == "mean":
        n = (counts + include_self).clamp(min=1)
        if x.is_floating_point():
            total = grid.segment_sum(items, index, x.numel()) + flat.double()
            sums = (total / n.double()).to(x.dtype)
        else:
            sums = sums.div(n, rounding_mode="floor")
        sums = torch.where(counts > 0, sums, flat)
    return sums.view(x.shape)


def _end(x: Tensor, start: float) -> int:
    limits = torch.iinfo(x.dtype)
    return limits.min if start < 0 else limits.max


def _by_value(index: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """In the order of the numbers, and then of the indices."""
    order = torch.sort(items, stable=True).indices
    order = order[torch.sort(index[order], stable=True).indices]
    return index[order], items[order]


def _multiplied(x: Tensor, index: Tensor, items: Tensor) -> Tensor:
    """X times the numbers of each index, in order, in float64: one for each index at a time."""
    counts = torch.bincount(index, minlength=x.numel())
    rank = torch.arange(len(index), device=x.device) - (counts.cumsum(0) - counts)[index]
    y = x.to(torch.float64 if x.is_floating_point() else x.dtype, copy=True)
    for i in range(int(counts.max()) if len(index) else 0):
        now = rank == i
        y[index[now]] = y[index[now]] * items[now]
    return y.to(x.dtype)


@implements("index_put", "_unsafe_index_put")
def _index_put(
    x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    flat = aten.index.Tensor(_flat_indices(x), indices)
    return (_accumulate if accumulate else _put)(x, flat, values.expand(flat.shape))


def _flat_indices(x: Tensor) -> Tensor:
    """The index of each element in x.flatten(), int64 in the shape of x."""
    return torch.arange(x.numel(), device=x.device).view(x.shape)


def _put(x: Tensor, indices: Tensor, source: Tensor) -> Tensor:
    """Scatter `source` into x; on duplicate indices the last wins."""
    _require_match(x, indices, source)
    n, items = x.numel(), source.flatten()
    last = torch.arange(n + len(items), device=x.device)
    last = last[:n].scatter_reduce(0, indices.flatten(), last[n:], "amax")
    return torch.cat([x.flatten(), items])[last].view(x.shape)


def _accumulate(x: Tensor, indices: Tensor, source: Tensor) -> Tensor:
    """X plus, at each index, the sum of the numbers of `source` that go there."""
    _require_match(x, indices, source)
    indices, items = indices.flatten(), source.flatten()
    if not x.is_floating_point():
        return x.flatten().scatter_add(0, indices, items).view(x.shape)
    sums = grid.segment_sum(items, indices, x.numel()).view(x.shape)
    return sums.add_(x).to(x.dtype)


def _require_match(x: Tensor, indices: Tensor, source: Tensor) -> None:
    grid.require_same_type(x, source)
    if indices.shape != source.shape:
        raise RuntimeError(f"expected numbers of {indices.shape}, not {source.shape}")
