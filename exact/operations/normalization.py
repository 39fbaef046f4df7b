"""Batch, group and layer normalisation: (x - mean) / deviation · weight + bias.

They differ in the dimensions that mean and deviation are taken along, and in the shape of
weight and bias. Below, both are given so that they broadcast with x.
"""

from typing import Any

import torch
from torch import Tensor

from exact import functions, grid
from exact.operations.reductions import moments
from exact.registry import implements

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _normalized(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    y = (x.double() - mean) * rstd
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype)


def _gradients(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None,
    inner: list[int], outer: list[int], mask: list[bool], constant: bool = False,
) -> _Gradients:  # fmt: skip
    """The gradients of x, weight and bias.

    `inner` are the dimensions of the moments and `outer` those that share a weight. With
    `constant`, the moments do not depend on x.
    """
    g = grad.double()
    normed = (x.double() - mean) * rstd
    scaled = g if weight is None else g * weight
    if mask[0] and not constant:
        along = grid.mean(scaled * normed, inner, keepdim=True)
        scaled = scaled - (grid.mean(scaled, inner, keepdim=True) + normed * along)
    weight_grad, bias_grad = g * normed, g
    if outer:
        weight_grad, bias_grad = grid.sum(weight_grad, outer), grid.sum(bias_grad, outer)
    return (
        (scaled * rstd).to(x.dtype) if mask[0] else None,
        weight_grad.to(x.dtype) if mask[1] else None,
        bias_grad.to(x.dtype) if mask[2] else None,
    )


@implements("native_layer_norm")
def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and 1/deviation with the normalised dimensions of size 1."""
    sizes = [list(parameter.shape) for parameter in (weight, bias) if parameter is not None]
    if any(size != list(shape) for size in [list(x.shape[x.dim() - len(shape) :]), *sizes]):
        raise RuntimeError(f"expected numbers of shape (…, {shape}), not {x.shape} with {sizes}")
    variance, mean = moments(x, list(range(x.dim() - len(shape), x.dim())), 0, keepdim=True)
    rstd = 1 / functions.sqrt(variance + eps)
    y = _normalized(x, mean, rstd, weight, bias)
    return y, mean.to(x.dtype), rstd.to(x.dtype)


@implements("native_layer_norm_backward")
def _layer_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor,
    weight: Tensor | None, bias: Tensor | None, mask: list[bool],
) -> _Gradients:  # fmt: skip
    split = x.dim() - len(shape)
    inner, outer = list(range(split, x.dim())), list(range(split))
    return _gradients(grad, x, mean, rstd, weight, inner, outer, mask)


@implements("native_group_norm")
def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, size: int,
    groups: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The output, and mean and 1/deviation of each group (N, G)."""
    y = x.reshape(n, groups, channels // groups, size)  # (N, G, C/G, H · W)
    variance, mean = moments(y, [2, 3], 0, keepdim=True)
    rstd = 1 / functions.sqrt(variance + eps)
    weight, bias = _by_group(weight, groups), _by_group(bias, groups)
    y = _normalized(y, mean, rstd, weight, bias)
    return y.view(x.shape), mean.view(n, groups).to(x.dtype), rstd.view(n, groups).to(x.dtype)


@implements("native_group_norm_backward")
def _group_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, n: int,
    channels: int, size: int, groups: int, mask: list[bool],
) -> _Gradients:  # fmt: skip
    y, g = (z.reshape(n, groups, channels // groups, size) for z in (x, grad))
    mean, rstd = (z.reshape(n, groups, 1, 1) for z in (mean, rstd))
    weight = _by_group(weight, groups)
    x_grad, *others = _gradients(g, y, mean, rstd, weight, [2, 3], [0, 3], mask)
    weight_grad, bias_grad = (None if z is None else z.flatten() for z in others)
    return None if x_grad is None else x_grad.view(x.shape), weight_grad, bias_grad


def _by_group(weight: Tensor | None, groups: int) -> Tensor | None:
    return None if weight is None else weight.reshape(groups, -1, 1)


def _by_channel(parameter: Tensor | None, x: Tensor) -> Any:
    """A parameter (C,) in a shape that broadcasts with x (N, C, …)."""
    return None if parameter is None else parameter.view(-1, *[1] * (x.dim() - 2))


@implements("_native_batch_norm_legit", "native_batch_norm")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, training: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The output, and mean and 1/deviation of the channels (C,), which are empty in evaluation."""
    if not training:
        mean, variance = _by_channel(running_mean, x), _by_channel(running_var, x)
        rstd = 1 / functions.sqrt(variance.double() + eps)
        return (
            _normalized(x, mean, rstd, _by_channel(weight, x), _by_channel(bias, x)),
            x.new_empty(0),
            x.new_empty(0),
        )
    dims = [0, *range(2, x.dim())]
    variance, mean = moments(x, dims, 0, keepdim=True)
    rstd = 1 / functions.sqrt(variance + eps)
    n = x.numel() // max(x.shape[1], 1)
    # PyTorch keeps the variance of a sample: with n - 1.
    unbiased = variance * n / torch.full_like(variance, n - 1)
    for running, value in ((running_mean, mean), (running_var, unbiased)):
        if running is not None:
            kept = running.double() * (1 - momentum)
            running.copy_(kept + value.flatten() * momentum)
    y = _normalized(x, mean, rstd, _by_channel(weight, x), _by_channel(bias, x))
    return y, mean.flatten().to(x.dtype), rstd.flatten().to(x.dtype)


@implements("_native_batch_norm_legit.no_stats")
def _batch_norm_without_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _batch_norm(x, weight, bias, None, None, True, momentum, eps)


@implements("_native_batch_norm_legit_no_training")
def _batch_norm_evaluation(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor,
    running_var: Tensor, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps)


@implements("native_batch_norm_backward")
def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, mean: Tensor | None, rstd: Tensor | None, training: bool,
    eps: float, mask: list[bool],
) -> _Gradients:  # fmt: skip
    if not training:
        assert running_var is not None  # noqa: S101  (for mypy)
        mean, rstd = running_mean, 1 / functions.sqrt(running_var.double() + eps)
    mean, rstd = _by_channel(mean, x), _by_channel(rstd, x)
    dims = [0, *range(2, x.dim())]
    weight = _by_channel(weight, x)
    return _gradients(grad, x, mean, rstd, weight, dims, dims, mask, constant=not training)


@implements("_weight_norm_interface")
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """The weight v · g / |v|, and |v| along all dimensions but one."""
    y = v.double()
    norms = functions.sqrt(grid.sum(y * y, _others(v, dim), keepdim=True))
    return (y * (g.double() / norms)).to(v.dtype), norms.to(v.dtype)


@implements("_weight_norm_interface_backward")
def _weight_norm_backward(
    grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    w, y, n = grad.double(), v.double(), norms.double()
    along = grid.sum(w * y, _others(v, dim), keepdim=True)
    v_grad = (g.double() / n) * (w - y * (along / (n * n)))
    return v_grad.to(v.dtype), (along / n).to(g.dtype)


def _others(x: Tensor, dim: int) -> list[int]:
    return [i for i in range(x.dim()) if i != dim % x.dim()]
