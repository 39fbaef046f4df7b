"""Softmax, cross-entropy and squared loss."""

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


_NONE, _MEAN = 0, 1  # PyTorch's numbers of the kinds of reduction; 2 is the sum


def _labels(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The labels, with 0 for those to be ignored, and which these are."""
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"expected labels of torch.int64, not {target.dtype}")
    if weight is not None and (weight.shape != x.shape[-1:] or weight.dtype != x.dtype):
        raise RuntimeError(f"expected {x.shape[-1]} weights of {x.dtype}, one for each class")
    ignored = target == ignore_index
    return target.long().masked_fill(ignored, 0), ignored


@implements("nll_loss_forward")
def _nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    index, ignored = _labels(x, target, weight, ignore_index)
    losses = -x.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    weights = torch.ones_like(losses) if weight is None else weight[index]
    if weight is not None:
        losses.mul_(weights)
    losses.masked_fill_(ignored, 0)
    if reduction == _NONE:
        return losses, x.new_zeros(())
    total, total_weight = grid.sum(losses, [0]), grid.sum(weights.masked_fill_(ignored, 0), [0])
    result = total / total_weight if reduction == _MEAN else total
    return result.to(x.dtype), total_weight.to(x.dtype)


@implements("nll_loss_backward")
def _nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int,
    ignore_index: int, total_weight: Tensor,
) -> Tensor:  # fmt: skip
    index, ignored = _labels(x, target, weight, ignore_index)
    gradients = -grad if weight is None else weight[index] * -grad
    if reduction == _MEAN:
        gradients = gradients / total_weight
    gradients = torch.where(ignored, 0, gradients)
    return torch.zeros_like(x).scatter_(-1, index.unsqueeze(-1), gradients.unsqueeze(-1))


@implements("mse_loss")
def _mse_loss(x: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    difference = x - target
    grid.require_floating_point(difference)
    squares = difference * difference
    if reduction == _NONE:
        return squares
    combine = grid.mean if reduction == _MEAN else grid.sum
    return combine(squares, []).to(squares.dtype)


@implements("mse_loss_backward")
def _mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    result = 2 * (x - target) * grad
    return result / torch.full_like(result, x.numel()) if reduction == _MEAN else result
