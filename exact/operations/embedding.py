"""Gradients of embeddings, and bags of embeddings: sums, means or maxima of some rows."""

import torch
from torch import Tensor

from exact import grid
from exact.errors import NotExactError
from exact.operations.indexing import index_add, scatter_add
from exact.operations.reductions import vector_norm
from exact.registry import implements

_SUM, _MEAN, _MAX = 0, 1, 2  # PyTorch's numbers of the modes


@implements("embedding_dense_backward")
def _embedding_backward(
    grad: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool
) -> Tensor:
    flat, g = indices.reshape(-1), grad.reshape(-1, grad.shape[-1])
    if by_frequency:
        counts = torch.bincount(flat, minlength=rows)
        g = g / counts[flat].to(g.dtype).unsqueeze(1)
    sums = index_add(grad.new_zeros(rows, grad.shape[-1]), 0, flat, g)
    if padding >= 0:
        sums[padding] = 0
    return sums


@implements("embedding_renorm_")
def _embedding_renorm_(weight: Tensor, indices: Tensor, max_norm: float, order: float) -> Tensor:
    """Scale the rows that are longer than `max_norm` down to it."""
    rows = torch.unique(indices)
    norms = vector_norm(weight[rows], order, [1], keepdim=True)
    scales = torch.full_like(norms, max_norm) / (norms + 1e-7)
    weight[rows] = torch.where(norms > max_norm, weight[rows] * scales, weight[rows])
    return weight


@implements("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    by_frequency: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    factors: Tensor | None = None,
    include_last: bool = False,
    padding: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bags (B, D), the bag of each index, the bags' sizes, and the rows of the maxima."""
    bags = len(offsets) - include_last
    if len(offsets) and (offsets[0] != 0 or offsets[-1] > len(indices)):
        raise RuntimeError("expected offsets from 0 to at most the number of indices")
    starts = torch.zeros(len(indices) + 1, dtype=torch.int64, device=indices.device)
    starts.scatter_add_(0, offsets[:bags].long(), torch.ones_like(offsets[:bags]).long())
    bag = starts.cumsum(0)[:-1] - 1
    kept = (indices != padding) & (bag < bags)
    rows, bag_of_row = indices[kept].long(), bag[kept]
    sizes = torch.bincount(bag_of_row, minlength=bags)
    values = weight[rows]
    if factors is not None:
        values = values * factors[kept].unsqueeze(1)
    if mode == _MAX:
        out, maxima = _maxima(values, rows, bag_of_row, bags)
    else:
        sums = index_add(
            values.new_zeros(bags, weight.shape[1]).double(), 0, bag_of_row, values.double()
        )
        if mode == _MEAN:
            sums = sums / sizes.clamp(min=1).double().unsqueeze(1)
        out, maxima = sums.to(weight.dtype), sizes.new_zeros(0)
    return out, bag, sizes, maxima


def _maxima(values: Tensor, rows: Tensor, bag: Tensor, bags: int) -> tuple[Tensor, Tensor]:
    """The largest of each bag, and the first row that has it; zeros of empty bags."""
    d = values.shape[1]
    index = bag.unsqueeze(1).expand(-1, d)
    largest = values.new_full((bags, d), -torch.inf).scatter_reduce(0, index, values, "amax")
    places = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand(-1, d)
    places = torch.where(values == largest[bag], places, len(rows))
    first = torch.full_like(largest, len(rows), dtype=torch.int64)
    first = first.scatter_reduce(0, index, places, "amin")
    empty = first == len(rows)
    maxima = torch.cat([rows, rows.new_full((1,), -1)])[first]
    return largest.masked_fill(empty, 0).add_(0.0), maxima.masked_fill(empty, -1)


@implements("_embedding_bag_dense_backward")
def _embedding_bag_backward(
    grad: Tensor,
    indices: Tensor,
    bag: Tensor,
    sizes: Tensor,
    maxima: Tensor,
    rows: int,
    by_frequency: bool,
    mode: int,
    factors: Tensor | None,
    padding: int = -1,
) -> Tensor:
    if by_frequency:
        raise NotExactError("EmbeddingBag with scale_grad_by_freq has no exact implementation")
    zeros = grad.new_zeros(rows, grad.shape[1]).double()
    if mode == _MAX:
        g = torch.where(maxima < 0, 0.0, grad.double())
        return scatter_add(zeros, 0, maxima.clamp(min=0), g).to(grad.dtype)
    kept = (indices != padding) & (bag < len(grad))
    g = grad.double()[bag[kept]]
    if mode == _MEAN:
        g = g / sizes[bag[kept]].double().unsqueeze(1)
    if factors is not None:
        g = g * factors[kept].double().unsqueeze(1)
    return index_add(zeros, 0, indices[kept].long(), g).to(grad.dtype)


@implements("_embedding_bag_per_sample_weights_backward")
def _embedding_bag_factors_backward(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bag: Tensor,
    mode: int,
    padding: int = -1,
) -> Tensor:
    kept = (indices != padding) & (bag < len(grad))
    products = grad[bag.clamp(max=max(len(grad) - 1, 0))].double() * weight[indices.long()]
    return torch.where(kept, grid.sum(products, [1]), 0.0).to(grad.dtype)


@implements("_embedding_bag_backward")
def _embedding_bag_any_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bag: Tensor,
    sizes: Tensor,
    maxima: Tensor,
    rows: int,
    by_frequency: bool,
    mode: int,
    sparse: bool,
    factors: Tensor | None,
    padding: int = -1,
) -> Tensor:
    if sparse:
        raise NotExactError("EmbeddingBag with sparse gradients has no exact implementation")
    return _embedding_bag_backward(
        grad, indices, bag, sizes, maxima, rows, by_frequency, mode, factors, padding
    )
