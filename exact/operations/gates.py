"""The gated linear unit, glu: one half of the numbers times the sigmoid of the other."""

import torch
from torch import Tensor

from exact import functions, grid
from exact.registry import implements


@implements("glu")
def _glu(x: Tensor, dim: int = -1) -> Tensor:
    grid.require_floating_point(x)
    a, b = _halves(x, dim)
    return (a * functions.sigmoid(b)).to(x.dtype)


@implements("glu_backward")
def _glu_backward(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    a, b = _halves(x, dim)
    g, s = grad.double(), functions.sigmoid(b)
    return torch.cat([g * s, g * a * (s * (1 - s))], dim).to(x.dtype)


@implements("glu_jvp")
def _glu_jvp(glu: Tensor, x: Tensor, dx: Tensor, dim: int) -> Tensor:
    (a, b), (da, db) = _halves(x, dim), _halves(dx, dim)
    s = functions.sigmoid(b)
    return (da * s + a * (s * (1 - s)) * db).to(x.dtype)


def _halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    if not x.dim() or x.shape[dim] % 2:
        raise RuntimeError(f"expected an even size in dimension {dim}, not {tuple(x.shape)}")
    a, b = x.double().chunk(2, dim)
    return a, b
