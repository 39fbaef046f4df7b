"""Softmax and its logarithm."""

import math

import torch
from torch import Tensor

from exact import functions, grid
from exact.registry import implements


def _log_softmax64(x: Tensor, dim: int) -> Tensor:
    grid.require_floating_point(x)
    if not x.numel():
        return x.double()
    shifted = x.to(torch.float64, copy=True).sub_(x.amax(dim, keepdim=True))
    # The largest exponential is 1, which spares the search for it and makes the sum normal.
    exponentials = functions.exp_normal(shifted.clamp(min=-700))
    total = grid.sum(exponentials, [dim], keepdim=True, largest=1.0)
    return shifted.sub_(functions.log_normal(total))


@implements("_log_softmax")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return _log_softmax64(x, dim).to(x.dtype)


@implements("_log_softmax_backward_data")
def _log_softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    # As the gradient of the whole: g - softmax · Σg.
    total = grid.sum(grad, [dim], keepdim=True)
    return (grad.double() - functions.exp(output) * total).to(dtype)


@implements("_softmax")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return functions.exp(_log_softmax64(x, dim)).to(x.dtype)


@implements("_safe_softmax")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """With 0 instead of NaN where all of x is -∞, as attention wants where all is masked."""
    nothing = (x == -math.inf).all(dim, keepdim=True)
    return _softmax(x, dim, half_to_float=False).masked_fill_(nothing, 0).to(dtype or x.dtype)


@implements("_softmax_backward_data")
def _softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    g, y = grad.double(), output.double()
    return (y * (g - grid.sum(g * y, [dim], keepdim=True))).to(dtype)
