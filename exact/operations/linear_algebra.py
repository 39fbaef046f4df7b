"""Decompositions of matrices (…, n, m), distances and cross products.

The decompositions go column by column, by the textbook's formulas with exact sums in float64.
"""

import math
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid
from exact.operations.reductions import vector_norm
from exact.registry import aten, exact_as_is, implements

exact_as_is("_linalg_check_errors")


@implements("linalg_qr")
def _qr(a: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    """Householder's reflections, with the signs of LAPACK."""
    grid.require_floating_point(a)
    (n, m), size = a.shape[-2:], grid.scale(a, [-2, -1])
    r, reflections = a.double() / size, []
    for j in range(min(n, m)):
        v = r[..., j:, j].clone()
        norm = functions.sqrt(grid.sum(v * v, [-1]))
        done = (v[..., 1:] == 0).all(-1)  # then LAPACK keeps the column
        v[..., 0] += torch.copysign(norm, v[..., 0])
        factor = torch.where(done, 0.0, 2 / grid.sum(v * v, [-1]))
        reflections.append((v.unsqueeze(-1), factor[..., None, None]))
        _reflect(r[..., j:, j:], *reflections[-1])
    r = torch.triu(r) * size
    if mode == "r":
        return a.new_empty(0), r[..., : min(n, m), :].to(a.dtype)
    columns = n if mode == "complete" else min(n, m)
    q = torch.eye(n, columns, dtype=torch.float64, device=a.device).repeat(*a.shape[:-2], 1, 1)
    for j, reflection in reversed(list(enumerate(reflections))):
        _reflect(q[..., j:, :], *reflection)
    return q.to(a.dtype), r[..., :columns, :].to(a.dtype)


def _reflect(x: Tensor, v: Tensor, factor: Tensor) -> None:
    x -= v * (grid.sum(v * x, [-2], keepdim=True) * factor)


@implements("linalg_cholesky_ex")
def _cholesky(
    a: Tensor, *, upper: bool = False, check_errors: bool = False
) -> tuple[Tensor, Tensor]:
    """The lower or upper factor, NaN where there is none; then `info` is its first bad column."""
    grid.require_floating_point(a)
    x = (a.mT if upper else a).double()
    lower, info = torch.zeros_like(x), x.new_zeros(a.shape[:-2], dtype=torch.int32)
    for j in range(a.shape[-1]):
        known = grid.sum(lower[..., j:, :j] * lower[..., j : j + 1, :j], [-1])
        column = x[..., j:, j] - known
        pivot = column[..., :1]
        lower[..., j:, j] = column / functions.sqrt(torch.where(pivot > 0, pivot, math.nan))
        info.masked_fill_((info == 0) & ~(pivot[..., 0] > 0), j + 1)
    if check_errors:
        aten._linalg_check_errors(info, "torch.linalg.cholesky_ex", is_matrix=a.dim() == 2)
    return (lower.mT.contiguous() if upper else lower).to(a.dtype), info


@implements("linalg_solve_triangular")
def _solve_triangular(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """The x of a x = b, or of x a = b."""
    grid.require_same_type(a, b)
    grid.require_floating_point(a)
    if not left:
        options = {"upper": not upper, "unitriangular": unitriangular}
        return _solve_triangular(a.mT, b.mT, **options).mT
    batch, n = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-1]
    y, x = a.double(), b.double().expand(*batch, *b.shape[-2:]).clone()
    for i in reversed(range(n)) if upper else range(n):
        known = slice(i + 1, n) if upper else slice(0, i)
        x[..., i, :] -= grid.sum(y[..., i, known, None] * x[..., known, :], [-2])
        if not unitriangular:
            x[..., i, :] /= y[..., i, i, None]
    return x.to(a.dtype)


@implements("cholesky_solve")
def _cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    half = _solve_triangular(lower, b, upper=False)
    return _solve_triangular(lower.mT, half, upper=True)


@implements("linalg_cross")
def _cross(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    grid.require_same_type(x, y)
    x, y = torch.broadcast_tensors(x, y)
    if x.shape[dim] != 3:
        raise RuntimeError(f"expected 3 numbers along dimension {dim}, not {x.shape[dim]}")
    a, b = (z.double() if z.is_floating_point() else z for z in (x, y))
    return (a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)).to(x.dtype)


@implements("_cdist_forward")
def _distances(x: Tensor, y: Tensor, order: float, mode: Any = None) -> Tensor:
    """The norms of all differences of rows of x (…, n, k) and y (…, m, k): (…, n, m)."""
    return vector_norm(_differences(x, y), order, [-1]).to(x.dtype)


@implements("_euclidean_dist")
def _euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    return _distances(x, y, 2)


@implements("_cdist_backward")
def _distances_backward(
    grad: Tensor, x: Tensor, y: Tensor, order: float, distances: Tensor
) -> Tensor:
    d, size, g = _differences(x, y), distances.double().unsqueeze(-1), grad.double().unsqueeze(-1)
    if order == 0:
        slopes = torch.zeros_like(d)
    elif math.isinf(order):
        slopes = d.sign() * (d.abs() == vector_norm(d, order, [-1], keepdim=True))
    elif order == 1:
        slopes = d.sign()
    else:
        shares = d.abs() / size
        slopes = d.sign() * functions.pow(shares, shares.new_full((), order - 1))
        slopes = slopes.masked_fill((d == 0) | (size == 0), 0)
    return grid.sum(slopes * g, [-2]).to(x.dtype)


def _differences(x: Tensor, y: Tensor) -> Tensor:
    grid.require_same_type(x, y)
    grid.require_floating_point(x)
    return x.double().unsqueeze(-2) - y.double().unsqueeze(-3)
