"""exp, log and others as fixed sequences of IEEE operations, the same bits everywhere.

Every product and every sum is a call of its own, so that none can be fused. Computed
in float64; rounded to float32 the results are within one unit in the last place.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "cos", "erf", "exp", "exp_normal", "ldexp", "log", "log_normal", "normal_cdf", "polynomial",
    "power", "sigmoid", "sqrt", "tanh",
]  # fmt: skip

_LOG2_E = 1.4426950408889634
# log 2 in two parts: the first has 21 zero bits at its end, so k times it is exact.
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, constant term first."""
    *others, before, last = coefficients
    result = (x * last).add_(before)
    for coefficient in reversed(others):
        result.mul_(x).add_(coefficient)
    return result


_EXP = tuple(1 / math.factorial(n) for n in range(14))


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
    return polynomial(r, _EXP), k.long()


def ldexp(x: Tensor, k: Tensor) -> Tensor:
    """Multiply x by 2^k, in place, for integers k from -2044 to 2046."""
    half = k >> 1  # in two steps, as 2^k can be beyond float64 where the result is not
    return x.mul_(_power_of_two(half)).mul_(_power_of_two(k - half))


def _power_of_two(k: Tensor) -> Tensor:
    return ((k + 1023) << 52).view(torch.float64)


_ARTANH = tuple(1 / (2 * n + 1) for n in range(12))


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
    series = polynomial(s * s, _ARTANH).mul_(s).mul_(2)
    return (k * _LN2_HIGH).add_(series.add_(k * _LN2_LOW))


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


_TANH = (1.0, -1 / 3, 2 / 15, -17 / 315)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent in float64: a series near 0, where 1 - 2 / (e^2x + 1) cancels."""
    x = x.double()
    far = 1 - 2 / (exp(2 * x) + 1)
    return torch.where(x.abs() < 2.0**-6, x * polynomial(x * x, _TANH), far)


_ERF = tuple(
    (-1) ** n * 2 / math.sqrt(math.pi) / (math.factorial(n) * (2 * n + 1)) for n in range(12)
)
# erfc(x) · e^x² as a polynomial of (x - 3.75) / (x + 3.75) for x of [0, 27.5], fitted
# by mpmath's chebyfit to 2e-16.
_ERFC = (
    0.1455897212750385, -0.273421931495427, 0.226008066916629, -0.1635718955238445,
    0.10260431203195954, -0.05480232669792507, 0.024143223974383794, -0.008220621108390759,
    0.0018029624261998306, -2.5535696900605897e-05, -0.00015246290216862682, 4.790043644519042e-05,
    3.5852792137134763e-06, -6.187783169310285e-06, 7.432804369374421e-07, 6.658262114107998e-07,
    -1.7347359646968342e-07, -7.685299925417056e-08, 2.1288142582792894e-08, 8.992238859296792e-09,
)  # fmt: skip


def erf(x: Tensor) -> Tensor:
    """The error function in float64: its series near 0, else 1 - erfc."""
    x = x.double()
    near = x * polynomial(x * x, _ERF)
    far = 1 - _erfc(x.abs())
    return torch.where(x.abs() < 0.5, near, torch.where(x < 0, -far, far))


def normal_cdf(x: Tensor) -> Tensor:
    """The standard normal distribution function in float64, its left tail included."""
    x = x.double()
    tail = _erfc(x.abs() * math.sqrt(0.5)).mul_(0.5)
    return torch.where(x < 0, tail, 1 - tail)


def _erfc(x: Tensor) -> Tensor:
    """The complementary error function of float64 numbers >= 0; 0 from 27.5 on, NaN of NaN."""
    x = x.clamp(max=27.5)
    return polynomial((x - 3.75) / (x + 3.75), _ERFC).mul_(exp(-x * x))


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
