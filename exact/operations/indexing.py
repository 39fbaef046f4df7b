"""Operations that write to given indices: scatter, index_put, index_add, embeddings' gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from exact import grid
from exact.errors import NotExactError
from exact.registry import aten, exact_as_is, implements

__all__ = ["scatter_add"]

exact_as_is("scatter.value")


@implements("scatter_add")
def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """X plus the numbers of `source` at their indices along `dim`, as torch.scatter_add."""
    return _scatter(_accumulate, x, dim, index, source)


@implements("scatter.src")
def _scatter_src(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return _scatter(_put, x, dim, index, source)


def _scatter(
    combine: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor, dim: int, index: Tensor, source: Tensor,
) -> Tensor:  # fmt: skip
    if not x.dim():
        return combine(x, index, source)
    used = tuple(slice(n) for n in index.shape)
    others = tuple(slice(None) if i == dim % x.dim() else part for i, part in enumerate(used))
    return combine(x, _flat_indices(x)[others].gather(dim, index), source[used])


@implements("index_add")
def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    source = source if alpha == 1 else source * alpha
    return _accumulate(x, _flat_indices(x).index_select(dim, index), source)


@implements("index_put", "_unsafe_index_put")
def _index_put(
    x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    flat = aten.index.Tensor(_flat_indices(x), indices)
    return (_accumulate if accumulate else _put)(x, flat, values.expand(flat.shape))


@implements("embedding_dense_backward")
def _embedding_backward(
    grad: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool
) -> Tensor:
    if by_frequency:
        raise NotExactError("embedding with scale_grad_by_freq has no exact implementation")
    zeros = grad.new_zeros(rows, grad.shape[-1])
    sums = _index_add(zeros, 0, indices.reshape(-1), grad.reshape(-1, grad.shape[-1]))
    if padding >= 0:
        sums[padding] = 0
    return sums


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
