"""Negative log-likelihood, the second half of cross-entropy: (N, C), (C) or (N, C, H, W)."""

import torch
from torch import Tensor

from exact import grid
from exact.operations.losses import MEAN, NONE
from exact.registry import implements


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
    if reduction == NONE:
        return losses, x.new_zeros(())
    total, total_weight = grid.sum(losses, [0]), grid.sum(weights.masked_fill_(ignored, 0), [0])
    result = total / total_weight if reduction == MEAN else total
    return result.to(x.dtype), total_weight.to(x.dtype)


@implements("nll_loss_backward")
def _nll_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    index, ignored = _labels(x, target, weight, ignore_index)
    gradients = -grad if weight is None else weight[index] * -grad
    if reduction == MEAN:
        gradients = gradients / total_weight
    gradients = torch.where(ignored, 0, gradients)
    return torch.zeros_like(x).scatter_(-1, index.unsqueeze(-1), gradients.unsqueeze(-1))


@implements("nll_loss2d_forward")
def _nll_loss2d(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The same for each pixel: the classes as the last dimension, and one row for all else."""
    flat = x.movedim(1, -1).reshape(-1, x.shape[1])
    result, total = _nll_loss(flat, target.reshape(-1), weight, reduction, ignore_index)
    return result.view(target.shape) if reduction == NONE else result, total


@implements("nll_loss2d_backward")
def _nll_loss2d_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    moved = x.movedim(1, -1)
    flat, labels = moved.reshape(-1, x.shape[1]), target.reshape(-1)
    grad = grad.reshape(-1) if reduction == NONE else grad
    result = _nll_loss_backward(grad, flat, labels, weight, reduction, ignore_index, total_weight)
    return result.view(moved.shape).movedim(-1, 1)
