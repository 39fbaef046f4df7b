"""Losses: each a function of prediction and target, and what a reduction makes of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from exact import functions, grid
from exact.registry import implements

__all__ = ["MEAN", "NONE", "reduced", "spread"]

NONE, MEAN = 0, 1  # PyTorch's numbers of the kinds of reduction; 2 is the sum


def reduced(losses: Tensor, reduction: int, dtype: torch.dtype) -> Tensor:
    """The losses, float64, themselves, or their mean or sum."""
    if reduction == NONE:
        return losses.to(dtype)
    result = grid.mean(losses, []) if reduction == MEAN else grid.sum(losses, [])
    return result.to(dtype)


def spread(slopes: Tensor, grad: Tensor, reduction: int, dtype: torch.dtype) -> Tensor:
    """The gradient of each input, from its slope in float64 and the gradient of the result."""
    result = slopes * grad.double()
    n = torch.full_like(result, result.numel())
    return (result / n if reduction == MEAN else result).to(dtype)


def loss(name: str, value: Callable[..., Tensor], slope: Callable[..., Tensor]) -> None:
    """Register `name` and `name_backward` by functions of input, target and a parameter.

    The operation's last argument may be the parameter, after the reduction.
    """

    @implements(name)
    def forward(x: Tensor, target: Tensor, reduction: int = MEAN, *parameter: float) -> Tensor:
        dtype = torch.result_type(x, target)
        grid.require_floating_point(x)
        return reduced(value(x.double(), target.double(), *parameter), reduction, dtype)

    @implements(f"{name}_backward")
    def backward(
        grad: Tensor, x: Tensor, target: Tensor, reduction: int, *parameter: float
    ) -> Tensor:
        slopes = slope(x.double(), target.double(), *parameter)
        return spread(slopes, grad, reduction, torch.result_type(x, target))


def _smooth_l1(x: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    d = (x - target).abs()
    if beta == 0:
        return d
    return torch.where(d < beta, d * d * 0.5 / torch.full_like(d, beta), d - 0.5 * beta)


def _smooth_l1_slope(x: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    d = x - target
    inner = d / torch.full_like(d, beta) if beta else d
    return torch.where(d.abs() < beta, inner, d.sign())


def _huber(x: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    d = (x - target).abs()
    return torch.where(d <= delta, d * d * 0.5, (d - 0.5 * delta) * delta)


def _huber_slope(x: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    return (x - target).clamp(-delta, delta)


def _soft_margin(x: Tensor, target: Tensor) -> Tensor:
    return functions.softplus(-target * x)


def _soft_margin_slope(x: Tensor, target: Tensor) -> Tensor:
    return -target * functions.sigmoid(-target * x)


loss("smooth_l1_loss", _smooth_l1, _smooth_l1_slope)
loss("huber_loss", _huber, _huber_slope)
loss("soft_margin_loss", _soft_margin, _soft_margin_slope)


@implements("mse_loss")
def _mse_loss(x: Tensor, target: Tensor, reduction: int = MEAN) -> Tensor:
    difference = x - target
    grid.require_floating_point(difference)
    squares = difference * difference
    if reduction == NONE:
        return squares
    combine = grid.mean if reduction == MEAN else grid.sum
    return combine(squares, []).to(squares.dtype)


@implements("mse_loss_backward")
def _mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    result = 2 * (x - target) * grad
    return result / torch.full_like(result, x.numel()) if reduction == MEAN else result


@implements("binary_cross_entropy")
def _binary_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> Tensor:
    """PyTorch's logarithms are at least -100."""
    if not ((x >= 0) & (x <= 1)).all():
        raise RuntimeError("expected probabilities from 0 to 1")
    p, y = x.double(), target.double()
    losses = (y - 1) * functions.log1p(-p).clamp(min=-100) - y * functions.log(p).clamp(min=-100)
    return reduced(losses if weight is None else losses * weight, reduction, x.dtype)


@implements("binary_cross_entropy_backward")
def _binary_cross_entropy_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> Tensor:
    p = x.double()
    slopes = (p - target) / ((1 - p) * p).clamp(min=1e-12)
    return spread(slopes if weight is None else slopes * weight, grad, reduction, x.dtype)


@implements("binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    z, y = x.double(), target.double()
    # The factor is 1, or that of the positive examples.
    factor = 1 if pos_weight is None else (pos_weight.double() - 1) * y + 1
    losses = (1 - y) * z + functions.softplus(-z) * factor
    return reduced(losses if weight is None else losses * weight, reduction, x.dtype)
