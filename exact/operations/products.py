"""Matrix products and linear layers."""

import torch
from torch import Tensor

from exact import grid
from exact import products as exact_products
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
    grid.require_same_type(a, bias)
    return _added(bias, _matmul(a, b, 2), beta, alpha)


@implements("baddbmm")
def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    grid.require_same_type(a, bias)
    return _added(bias, _matmul(a, b, 3), beta, alpha)


@implements("addbmm")
def _addbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The sum of products, as one product of the matrices side by side."""
    grid.require_same_type(a, bias)
    product = _matmul(a.transpose(0, 1).flatten(1), b.flatten(0, 1), 2)
    return _added(bias, product, beta, alpha)


@implements("mv")
def _mv(a: Tensor, b: Tensor) -> Tensor:
    return _matmul(a, b.unsqueeze(1), 2).squeeze(1)


@implements("addmv")
def _addmv(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    grid.require_same_type(a, bias)
    return _added(bias, _mv(a, b), beta, alpha)


@implements("dot", "vdot")
def _dot(a: Tensor, b: Tensor) -> Tensor:
    if not a.dim() == b.dim() == 1:
        raise RuntimeError(f"expected two vectors, not {tuple(a.shape)} and {tuple(b.shape)}")
    return _mv(a.unsqueeze(0), b).squeeze(0)


@implements("addr")
def _addr(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _added(bias, a.unsqueeze(1) * b, beta, alpha)


@implements("_trilinear")
def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sumdim: list[int],
    unroll_dim: int = 1,
) -> Tensor:
    """The sum of a product of three, each with the dimensions that it lacks."""
    product = torch.ones((), dtype=torch.float64, device=a.device)
    for x, dims in ((a, expand1), (b, expand2), (c, expand3)):
        for dim in sorted(dims):
            x = x.unsqueeze(dim)
        product = product * x.double()
    return grid.sum(product, list(sumdim)).to(a.dtype) if sumdim else product.to(a.dtype)


def _added(bias: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    """Beta · bias + alpha · product, each rounded; where beta is 0, bias may be NaN."""
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return product.add_(bias if beta == 1 else bias * beta)
