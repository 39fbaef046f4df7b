"""Hyperbolic functions and their inverses in float64."""

import math

import torch
from torch import Tensor

from exact.functions import exp, log, log1p, polynomial, sqrt

__all__ = ["acosh", "asinh", "atanh", "cosh", "sinh", "tanh"]

_LN2 = 0.6931471805599453
_LARGE = 2.0**28  # beyond it, 1 is nothing beside the square


_TANH = (1.0, -1 / 3, 2 / 15, -17 / 315)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent in float64: a series near 0, where 1 - 2 / (e^2x + 1) cancels."""
    x = x.double()
    far = 1 - 2 / (exp(2 * x) + 1)
    return torch.where(x.abs() < 2.0**-6, x * polynomial(x * x, _TANH), far)


_SINH = tuple(1 / math.factorial(2 * n + 1) for n in range(8))


def sinh(x: Tensor) -> Tensor:
    """The hyperbolic sine in float64, by its series near 0."""
    x = x.double()
    near = x.clamp(-0.5, 0.5)
    far = (exp(x) - exp(-x)) * 0.5
    return torch.where(near == x, near * polynomial(near * near, _SINH), far)


def cosh(x: Tensor) -> Tensor:
    """The hyperbolic cosine in float64."""
    x = x.double()
    return (exp(x) + exp(-x)) * 0.5


def asinh(x: Tensor) -> Tensor:
    """The inverse of sinh in float64."""
    x = x.double()
    y = x.abs().clamp(max=_LARGE)
    square = y * y
    near = log1p(y + square / (sqrt(square + 1) + 1))
    return torch.where(x.abs() > _LARGE, log(x.abs()) + _LN2, near).copysign(x)


def acosh(x: Tensor) -> Tensor:
    """The inverse of cosh in float64: NaN below 1."""
    x = x.double()
    y = x.clamp(max=_LARGE) - 1
    result = torch.where(x > _LARGE, log(x) + _LN2, log1p(y + sqrt(y * (y + 2))))
    return torch.where(x < 1, math.nan, result)


def atanh(x: Tensor) -> Tensor:
    """The inverse of tanh in float64: NaN beyond 1."""
    x = x.double()
    y = x.abs()
    return (log1p(2 * y / (1 - y)) * 0.5).copysign(x)
