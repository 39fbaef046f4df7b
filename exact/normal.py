"""The normal distribution in float64: its distribution function, the error function, inverses."""

import math

import torch
from torch import Tensor

from exact.functions import exp, log, polynomial, sqrt

__all__ = ["erf", "erfc", "erfinv", "inverse_normal_cdf", "normal_cdf"]

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


def erfc(x: Tensor) -> Tensor:
    """The complementary error function in float64, its right tail included."""
    x = x.double()
    tail = _erfc(x.abs())
    near = 1 - x * polynomial(x * x, _ERF)
    return torch.where(x.abs() < 0.5, near, torch.where(x < 0, 2 - tail, tail))


def _erfc(x: Tensor) -> Tensor:
    """The complementary error function of float64 numbers >= 0; 0 from 27.5 on, NaN of NaN."""
    x = x.clamp(max=27.5)
    return polynomial((x - 3.75) / (x + 3.75), _ERFC).mul_(exp(-x * x))


def erfinv(x: Tensor) -> Tensor:
    """The inverse of erf in float64: infinity at 1, NaN beyond."""
    x = x.double()
    tail = (1 - x.abs()) * 0.5
    result = inverse_normal_cdf(x * 0.5, tail.clamp(min=2.0**-1000)) * math.sqrt(0.5)
    result = torch.where(tail == 0, x * math.inf, result)
    return torch.where((tail < 0) | x.isnan(), math.nan, result)


def inverse_normal_cdf(q: Tensor, tail: Tensor) -> Tensor:
    """The x at which the standard normal distribution function is 1/2 + q.

    `tail` is 1/2 - |q| > 0, which may need digits that q does not have. By Wichura's algorithm
    AS 241 (Applied Statistics 37, 1988), which is right to about 16 digits.
    """
    r = 0.180625 - q * q
    result = q * (polynomial(r, _A) / polynomial(r, _B))  # where |q| <= 0.425
    outside = q.abs() > 0.425
    t = sqrt(-log(tail[outside]))
    near = polynomial(t - 1.6, _C) / polynomial(t - 1.6, _D)  # where t <= 5
    far = polynomial(t - 5, _E) / polynomial(t - 5, _F)
    outer = torch.where(t <= 5, near, far)
    result[outside] = torch.where(q[outside] < 0, -outer, outer)
    return result


_A = (
    3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
    1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
    3.3430575583588128105e4, 2.5090809287301226727e3,
)  # fmt: skip
_B = (
    1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
    2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4,
    5.2264952788528545610e3,
)  # fmt: skip
_C = (
    1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
    3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
    2.27238449892691845833e-2, 7.74545014278341407640e-4,
)  # fmt: skip
_D = (
    1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
    1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
    1.05075007164441684324e-9,
)  # fmt: skip
_E = (
    6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
    2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
    2.71155556874348757815e-5, 2.01033439929228813265e-7,
)  # fmt: skip
_F = (
    1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
    7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
    2.04426310338993978564e-15,
)  # fmt: skip
