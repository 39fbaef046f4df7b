"""Activation functions and their derivatives.

Each is a function of float64 numbers, and its derivative another: a pair is a few lines. What
the derivative's operation is called with is the order of PyTorch's arguments.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid, hyperbolic, normal
from exact.registry import exact_as_is, implements

# They compare and choose, or take one difference.
exact_as_is("""
    threshold threshold_backward hardshrink hardshrink_backward softshrink_backward
    hardtanh_backward
""")


def activation(name: str, value: Callable[..., Tensor], slope: Callable[..., Tensor]) -> None:
    """Register `name` and `name_backward` by functions of float64 numbers and of the parameters."""

    @implements(name)
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        grid.require_floating_point(x)
        return value(x.double(), *args, **kwargs).to(x.dtype)

    @implements(f"{name}_backward")
    def backward(grad: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (grad.double() * slope(x.double(), *args, **kwargs)).to(x.dtype)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return x * normal.normal_cdf(x)
    return x * functions.sigmoid(_gelu_curve(x))


def _gelu_slope(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "none":
        factor = normal.normal_cdf(x)
        slope = functions.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    else:
        factor = functions.sigmoid(_gelu_curve(x))
        slope = factor * (1 - factor) * ((x * x * (3 * _CUBIC) + 1) * _LINEAR)
    return factor + x * slope


# ½ (1 + tanh u) = sigmoid(2u), for u = sqrt(2/π) (x + 0.044715 x³).
_LINEAR, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def _gelu_curve(x: Tensor) -> Tensor:
    return (x * x * _CUBIC + 1) * x * _LINEAR


def _silu(x: Tensor) -> Tensor:
    return torch.where(x == -math.inf, -0.0, x * functions.sigmoid(x))


def _silu_slope(x: Tensor) -> Tensor:
    s = functions.sigmoid(x)
    return s * (x.clamp(-800, 800) * (1 - s) + 1)


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, x, functions.softplus(z) / torch.full_like(z, beta))


def _softplus_slope(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, 1.0, functions.sigmoid(z))


def _mish(x: Tensor) -> Tensor:
    return torch.where(x == -math.inf, -0.0, x * hyperbolic.tanh(functions.softplus(x)))


def _mish_slope(x: Tensor) -> Tensor:
    t = hyperbolic.tanh(functions.softplus(x))
    return t + x.clamp(-800, 800) * functions.sigmoid(x) * ((1 - t) * (1 + t))


def _leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, x, x * slope)


def _leaky_relu_slope(x: Tensor, slope: float, of_result: bool) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), slope)


def _hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / torch.full_like(x, 6)


def _hardswish_slope(x: Tensor) -> Tensor:
    middle = x / torch.full_like(x, 3) + 0.5
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, middle))


def _hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / torch.full_like(x, 6)


def _hardsigmoid_slope(x: Tensor) -> Tensor:
    return ((x > -3) & (x < 3)).double() / torch.full_like(x, 6)


activation("gelu", _gelu, _gelu_slope)
activation("silu", _silu, _silu_slope)
activation("mish", _mish, _mish_slope)
activation("softplus", _softplus, _softplus_slope)
activation("leaky_relu", _leaky_relu, _leaky_relu_slope)
activation("hardswish", _hardswish, _hardswish_slope)
activation("hardsigmoid", _hardsigmoid, _hardsigmoid_slope)


@implements("sigmoid_backward")
def _sigmoid_backward(grad: Tensor, output: Tensor) -> Tensor:
    return grad * (output * (1 - output))


@implements("tanh_backward")
def _tanh_backward(grad: Tensor, output: Tensor) -> Tensor:
    return grad * (1 - output * output)


@implements("relu")
def _relu(x: Tensor) -> Tensor:
    return torch.threshold(x, 0, 0)  # which makes 0 of -0


@implements("relu_")
def _relu_(x: Tensor) -> Tensor:
    return torch.threshold_(x, 0, 0)


@implements("hardtanh")
def _hardtanh(x: Tensor, low: float = -1, high: float = 1) -> Tensor:
    return x.clamp(low, high).add_(0.0)  # makes 0 of -0


@implements("softshrink")
def _softshrink(x: Tensor, size: float = 0.5) -> Tensor:
    zero = x * 0  # NaN stays
    return torch.where(x > size, x - size, torch.where(x < -size, x + size, zero)).add_(0.0)


@implements("elu")
def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    grid.require_floating_point(x)
    y = x.double()
    below = functions.expm1(y * input_scale) * (alpha * scale)
    return torch.where(y > 0, y * scale, below).to(x.dtype)


@implements("elu_backward")
def _elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, of_result: bool, x: Tensor
) -> Tensor:
    y = x.double()
    if of_result:
        below = (y + alpha * scale) * input_scale
    else:
        below = functions.exp(y * input_scale) * (input_scale * alpha * scale)
    slope = torch.where(y > 0, torch.full_like(y, scale), below)
    return (grad.double() * slope).to(grad.dtype)


@implements("celu")
def _celu(x: Tensor, alpha: float = 1) -> Tensor:
    return _elu(x, alpha, 1, 1 / alpha)


@implements("log_sigmoid_forward")
def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and a buffer that PyTorch's own backward operation wants on the CPU."""
    grid.require_floating_point(x)
    return (-functions.softplus(-x.double())).to(x.dtype), x.new_empty(0)


@implements("log_sigmoid_backward")
def _log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    return (grad.double() * functions.sigmoid(-x.double())).to(x.dtype)


@implements("_prelu_kernel")
def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * weight)


@implements("_prelu_kernel_backward")
def _prelu_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(x)
    return torch.where(x > 0, grad, grad * weight), torch.where(x > 0, zero, grad * x)
