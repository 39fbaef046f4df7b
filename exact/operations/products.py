"""Matrix products and linear layers."""

import torch
from torch import Tensor

from exact import grid
from exact import products as exact_products
from exact.errors import NotExactError
from exact.registry import implements


@implements("mm")
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _matmul(a, b, 2)


@implements("bmm")
def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _matmul(a, b, 3)


def _matmul(a: Tensor, b: Tensor, dims: int) -> Tensor:
    if not a.dim() == b.dim() == dims or a.shape[:-2] != b.shape[:-2]:
        raise RuntimeError(f"expected {dims}-d tensors of equal batches, not {a.shape}, {b.shape}")
    if a.dtype != b.dtype or not a.is_floating_point():
        return torch.matmul(a, b)  # integers, which no sum rounds, or PyTorch's error
    return exact_products.matmul(a, b).to(a.dtype)


@implements("addmm")
def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The product and then the sum, each rounded, as PyTorch may also call them one by one.

    Which way a linear layer goes depends on the layout of its input in memory.
    """
    if beta != 1 or alpha != 1:
        raise NotExactError("addmm with factors has no exact implementation: multiply separately")
    grid.require_same_type(a, bias)
    return _matmul(a, b, 2).add_(bias)
