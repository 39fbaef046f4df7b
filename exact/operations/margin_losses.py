"""Losses by how much other classes come too near to those that are right."""

from typing import Any

import torch
from torch import Tensor

from exact import grid
from exact.operations.losses import MEAN, NONE, reduced
from exact.registry import implements


@implements("multi_margin_loss")
def _multi_margin_loss(
    x: Tensor,
    target: Tensor,
    p: float = 1,
    margin: float = 1,
    weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    excess, scale = _multi_margin(x, target, margin, weight)
    losses = grid.sum((excess if p == 1 else excess * excess) * scale, [-1] if x.dim() else [])
    losses = losses.view(target.shape)
    n = torch.full_like(losses, _classes(x))
    return reduced(losses / n, reduction, x.dtype)


@implements("multi_margin_loss_backward")
def _multi_margin_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    p: float,
    margin: float,
    weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    excess, scale = _multi_margin(x, target, margin, weight)
    slopes = ((excess > 0).double() if p == 1 else excess * 2) * scale
    slopes = slopes / torch.full_like(slopes, _classes(x))
    own = -grid.sum(slopes, [-1] if x.dim() else [], keepdim=True)
    slopes = slopes.scatter(-1, _index_of(target, x), own)
    return _spread_rows(slopes, grad, reduction, x)


def _spread_rows(slopes: Tensor, grad: Tensor, reduction: int, x: Tensor) -> Tensor:
    """As `spread`, for a loss of each row."""
    g = grad.double().reshape(-1, *[1] * (x.dim() - 1)) if reduction == NONE else grad.double()
    result = slopes * g
    rows = x.shape[0] if x.dim() > 1 else 1
    return (result / torch.full_like(result, rows) if reduction == MEAN else result).to(x.dtype)


def _classes(x: Tensor) -> int:
    return x.shape[-1] if x.dim() else 1


def _index_of(target: Tensor, x: Tensor) -> Tensor:
    """The classes as an index of x: (N, 1), or (1,) for one example."""
    return target.reshape([*x.shape[:-1], 1] if x.dim() else [])


def _multi_margin(
    x: Tensor, target: Tensor, margin: float, weight: Tensor | None
) -> tuple[Tensor, Any]:
    """By how much each other class comes too near, and the weight of the class that is right."""
    y, index = x.double(), _index_of(target, x)
    excess = ((y - y.gather(-1, index)) + margin).clamp(min=0).scatter(-1, index, 0.0)
    return excess, 1 if weight is None else weight[index].double()


@implements("multilabel_margin_loss_forward")
def _multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    excess, of_target, _ = _multilabel_margin(x, target)
    losses = grid.sum(excess.clamp(min=0), [-2, -1])
    losses = losses / torch.full_like(losses, _classes(x))
    return reduced(losses, reduction, x.dtype), of_target.to(x.dtype)


@implements("multilabel_margin_loss_backward")
def _multilabel_margin_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, is_target: Tensor
) -> Tensor:
    excess, _, index = _multilabel_margin(x, target)
    active = (excess > 0).double()  # (…, targets, classes)
    slopes = active.sum(-2)
    slopes = slopes.scatter_add(-1, index, -active.sum(-1)).view(x.shape)  # whole numbers
    slopes = slopes / torch.full_like(slopes, _classes(x))
    return _spread_rows(slopes, grad, reduction, x)


def _multilabel_margin(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each class that is not a target lacks to each that is: (…, targets, classes)."""
    if not x.dim():
        excess, of_target, index = _multilabel_margin(x.view(1), target.view(1))
        return excess, of_target.view(()), index
    valid = (target < 0).cumsum(-1) == 0  # targets end at the first -1
    index = torch.where(valid, target, 0)
    of_target = torch.zeros_like(target).scatter_reduce(-1, index, valid.long(), "amax").bool()
    y = x.double()
    excess = 1 - (y.gather(-1, index).unsqueeze(-1) - y.unsqueeze(-2))
    counted = valid.unsqueeze(-1) & ~of_target.unsqueeze(-2)
    return torch.where(counted, excess, 0.0), of_target, index
