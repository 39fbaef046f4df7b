"""exp, log and their kin as fixed sequences of IEEE operations, the same bits everywhere.

Every product and every sum is a call of its own, so that none can be fused. Computed
in float64; rounded to float32 the results are within one unit in the last place.
"""

import math

import torch
from torch import Tensor

__all__ = ["exp", "log", "polynomial", "sigmoid", "sqrt", "tanh"]

_LOG2_E = 1.4426950408889634
# log 2 in two parts: the first has 21 zero bits at its end, so k times it is exact.
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, constant term first."""
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result.mul_(x).add_(coefficient)
    return result


_EXP = tuple(1 / math.factorial(n) for n in range(14))


def exp(x: Tensor) -> Tensor:
    """e^x in float64: x = k log 2 + r with |r| < 0.35, and 2^k times a Taylor polynomial."""
    x = x.double()
    y = x.clamp(-800, 800)  # beyond, the result is 0 or infinity as it is here; NaN stays
    k = (y * _LOG2_E).round()
    r = (y - k * _LN2_HIGH) - k * _LN2_LOW
    k = k.nan_to_num(0).long()
    half = k >> 1  # in two steps, as 2^k can be beyond float64 where the result is not
    return polynomial(r, _EXP) * _power_of_two(half) * _power_of_two(k - half)


def _power_of_two(k: Tensor) -> Tensor:
    return ((k + 1023) << 52).view(torch.float64)


_ARTANH = tuple(1 / (2 * n + 1) for n in range(12))


def log(x: Tensor) -> Tensor:
    """The natural logarithm in float64.

    x = m · 2^e with m of [sqrt(1/2), sqrt(2)), and log m = 2 artanh((m-1) / (m+1)).
    """
    x = x.double()
    small = x < 2.0**-1000  # subnormals have no exponent of their own
    bits = torch.where(small, x * 2.0**60, x).view(torch.int64)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52  # the bits of sqrt(1/2)
    m = (bits - (e << 52)).view(torch.float64)
    s = (m - 1) / (m + 1)  # |s| < 0.1716
    k = e.double() - small.double() * 60
    result = k * _LN2_HIGH + (k * _LN2_LOW + 2 * s * polynomial(s * s, _ARTANH))
    result = torch.where(x == 0, -math.inf, result)
    result = torch.where(x == math.inf, math.inf, result)
    return torch.where((x < 0) | x.isnan(), math.nan, result)


def sqrt(x: Tensor) -> Tensor:
    """The square root in float64, by Heron's method from a guess within 4 %."""
    x = x.double()
    small = x < 2.0**-1000
    y = torch.where(small, x * 2.0**200, x)
    root = ((y.view(torch.int64) >> 1) + 0x1FF7A3BEA91D9B1B).view(torch.float64)
    for _ in range(4):
        root = 0.5 * (root + y / root)
    root = torch.where(small, root * 2.0**-100, root)
    root = torch.where((x == 0) | (x == math.inf), x, root)
    return torch.where((x < 0) | x.isnan(), math.nan, root)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) in float64."""
    return 1 / (exp(-x) + 1)


_TANH = (1.0, -1 / 3, 2 / 15, -17 / 315)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent in float64: a series near 0, where 1 - 2 / (e^2x + 1) cancels."""
    x = x.double()
    far = 1 - 2 / (exp(2 * x) + 1)
    return torch.where(x.abs() < 2.0**-6, x * polynomial(x * x, _TANH), far)
