"""exp, log and others as fixed sequences of IEEE operations, the same bits everywhere.

Every product and every sum is a call of its own, so that none can be fused. Computed
in float64; rounded to float32 the results are within one unit in the last place.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "ARTANH_SERIES", "EXP_SERIES", "cos", "exp", "exp2", "exp_normal", "expm1", "ldexp", "log",
    "log1p", "log2", "log10", "log_normal", "polynomial", "pow", "power", "sigmoid", "softplus",
    "sqrt",
]  # fmt: skip

_LOG2_E = 1.4426950408889634
# log 2, and in two parts, of which the first has 21 zero bits at its end, so k times it is exact.
_LN2 = 0.6931471805599453
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, constant term first."""
    *others, before, last = coefficients
    result = (x * last).add_(before)
    for coefficient in reversed(others):
        result.mul_(x).add_(coefficient)
    return result


EXP_SERIES = tuple(1 / math.factorial(n) for n in range(14))


def exp(x: Tensor) -> Tensor:
    """e^x in float64."""
    # Beyond 800 the result is 0 or infinity as it is here; NaN stays.
    return ldexp(*_exp_parts(x.double().clamp(-800, 800)))


def exp_normal(x: Tensor) -> Tensor:
    """e^x of float64 numbers of [-700, 700], where it needs fewer steps."""
    part, k = _exp_parts(x)
    return part.mul_(_power_of_two(k))


def _exp_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The factors e^r and 2^k of e^x: x = k log 2 + r, and e^r a Taylor polynomial.

    |r| < 0.35. Returns e^r as float64 and k as int64.
    """
    k = (x * _LOG2_E).round_()
    r = (x - k * _LN2_HIGH).sub_(k * _LN2_LOW)
    return polynomial(r, EXP_SERIES), k.long()


def ldexp(x: Tensor, k: Tensor) -> Tensor:
    """Multiply x by 2^k, in place, for integers k from -2044 to 2046."""
    half = k >> 1  # in two steps, as 2^k can be beyond float64 where the result is not
    return x.mul_(_power_of_two(half)).mul_(_power_of_two(k - half))


def _power_of_two(k: Tensor) -> Tensor:
    return ((k + 1023) << 52).view(torch.float64)


ARTANH_SERIES = tuple(1 / (2 * n + 1) for n in range(12))


def log(x: Tensor) -> Tensor:
    """The natural logarithm in float64: −∞ of 0, NaN of negative numbers.

    x = m · 2^e with m of [sqrt(1/2), sqrt(2)), and log m = 2 artanh((m-1) / (m+1)).
    """
    x = x.double()
    small = x < 2.0**-1000  # subnormals have no exponent of their own
    result = log_normal(torch.where(small, x * 2.0**60, x), shift=small.double() * 60)
    result = torch.where(x == 0, -math.inf, result)
    result = torch.where(x == math.inf, math.inf, result)
    return torch.where((x < 0) | x.isnan(), math.nan, result)


def log_normal(x: Tensor, shift: Tensor | None = None) -> Tensor:
    """The logarithm of x / 2^shift, x of float64's positive normal numbers alone."""
    bits = x.view(torch.int64)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52  # the bits of sqrt(1/2)
    m = (bits - (e << 52)).view(torch.float64)
    s = (m - 1).div_(m + 1)  # |s| < 0.1716
    k = e.double() if shift is None else e.double().sub_(shift)
    series = polynomial(s * s, ARTANH_SERIES).mul_(s).mul_(2)
    return (k * _LN2_HIGH).add_(series.add_(k * _LN2_LOW))


def log2(x: Tensor) -> Tensor:
    """The logarithm to base 2 in float64, without error for powers of two."""
    x = x.double()
    e = ((x.view(torch.int64) - 0x3FE6A09E667F3BCD) >> 52).clamp_(-1022, 1023)
    scaled = x * _power_of_two(-(e >> 1)) * _power_of_two((e >> 1) - e)
    return log(scaled) * _LOG2_E + e.double()


def log10(x: Tensor) -> Tensor:
    """The logarithm to base 10 in float64."""
    return log(x) * (1 / math.log(10))


def log1p(x: Tensor) -> Tensor:
    """The logarithm of 1 + x in float64, by its series near 0."""
    x = x.double()
    near = (x > -0.29) & (x < 0.41)
    s = torch.where(near, x / (x + 2), 0.0)  # |s| < 0.1716, as above
    return torch.where(near, polynomial(s * s, ARTANH_SERIES).mul_(s).mul_(2), log(x + 1))


def exp2(x: Tensor) -> Tensor:
    """2^x in float64, without error for integers."""
    x = x.double().clamp(-1100, 1100)
    k = x.round()
    return ldexp(polynomial((x - k).mul_(_LN2), EXP_SERIES), k.long())


def expm1(x: Tensor) -> Tensor:
    """e^x - 1 in float64, by its series near 0."""
    x = x.double()
    near = x.clamp(-0.35, 0.35)
    return torch.where(near == x, polynomial(near, EXP_SERIES[1:]).mul_(near), exp(x) - 1)


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
    return 1 / (exp(-x.double()) + 1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), for large x too, of a float64 tensor."""
    return x.clamp(min=0) + log1p(exp(-x.abs()))


def pow(x: Tensor, y: Tensor) -> Tensor:  # noqa: A001
    """x^y in float64 as e^(y log |x|): NaN of a negative x with a fraction as exponent."""
    x, y = torch.broadcast_tensors(x.double(), y.double())
    result = exp(y * log(x.abs()))
    odd = y.abs().remainder(2) == 1  # not so infinity
    result = torch.where(x.signbit() & odd, -result, result)
    result = torch.where((x < 0) & (y != y.floor()) & x.isfinite(), math.nan, result)
    result = torch.where((x == -1) & y.isinf(), 1.0, result)
    return torch.where((y == 0) | (x == 1), 1.0, result)


def power(x: float, n: int) -> float:
    """x^n by squaring, as Python's own `**` is the platform's library."""
    result = 1.0
    while n:
        if n & 1:
            result *= x
        x *= x
        n >>= 1
    return result


_HALF_PI, _HALF_PI_LOW = 1.5707963267948966, 6.123233995736766e-17
_COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(9))
_SIN = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(9))


def cos(x: float) -> float:
    """The cosine of a few turns: series within π/4 of the nearest quarter."""
    quarters = round(x / _HALF_PI)
    y = x - quarters * _HALF_PI - quarters * _HALF_PI_LOW
    cosine = sine = 0.0
    for even, odd in zip(reversed(_COS), reversed(_SIN), strict=True):
        cosine, sine = cosine * (y * y) + even, sine * (y * y) + odd
    return (cosine, -sine * y, -cosine, sine * y)[quarters % 4]
