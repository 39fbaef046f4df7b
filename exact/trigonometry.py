"""Sines, tangents and their inverses in float64, as fixed sequences of IEEE operations."""

import functools
import math

import torch
from torch import Tensor

from exact.functions import polynomial, sqrt

__all__ = ["acos", "asin", "atan", "atan2", "cos", "sin", "tan"]

# π/2 in three parts. The first two have 33 bits, so that quarters of up to 20 bits times them
# are exact.
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(9))
_SIN = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(9))
_FAR = 2.0**20
_DIGITS, _DIGIT = 8, 24  # of 2/π, and the bits of each


def sin(x: Tensor) -> Tensor:
    """The sine: NaN of infinity."""
    sine, cosine, quarter = _reduced(x)
    result = torch.where(quarter % 2 == 0, sine, cosine)
    result = torch.where(quarter >= 2, -result, result)
    return torch.where(x == 0, x, result)  # as it is with its sign


def cos(x: Tensor) -> Tensor:
    """The cosine: NaN of infinity."""
    sine, cosine, quarter = _reduced(x)
    result = torch.where(quarter % 2 == 0, cosine, sine)
    return torch.where((quarter == 1) | (quarter == 2), -result, result)


def tan(x: Tensor) -> Tensor:
    """The tangent: NaN of infinity."""
    sine, cosine, quarter = _reduced(x)
    result = torch.where(quarter % 2 == 0, sine / cosine, -cosine / sine)
    return torch.where(x == 0, x, result)


def _reduced(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sine and cosine of x less the nearest multiple of π/2, and this multiple modulo 4."""
    x = x.double()
    far = x.abs() >= _FAR
    near = torch.where(far, 0.0, x)
    quarters = (near * (2 / math.pi)).round_()
    r = near
    for part in _HALF_PI:
        r = r - quarters * part
    quarter = quarters.long() % 4
    if far.any():
        far_r, far_quarter = _reduced_far(torch.where(far & x.isfinite(), x, 1.0))
        r, quarter = torch.where(far, far_r, r), torch.where(far, far_quarter, quarter)
    r = torch.where(x.isfinite(), r, math.nan)
    square = r * r
    return r * polynomial(square, _SIN), polynomial(square, _COS), quarter


def _reduced_far(x: Tensor) -> tuple[Tensor, Tensor]:
    """The remainder of large numbers, by the bits of 2/π that matter at their exponent.

    After Payne and Hanek, "Radian reduction for trigonometric functions", SIGNUM 18 (1983).
    """
    bits = x.view(torch.int64)
    exponent, significand = (bits >> 52) & 0x7FF, (bits & (2**52 - 1)) | 2**52
    parts = _two_over_pi().to(x.device)[exponent - 1023].unbind(-1)
    # The significand has 53 bits: 27, and 26 that count 2^27 = 8 · 2^24, in the digit before.
    low, high = significand & (2**27 - 1), significand >> 27 << 3
    columns = [part * low for part in parts]
    for i, part in enumerate(parts[1:]):
        columns[i] = columns[i] + part * high  # below 2^54
    carry = torch.zeros_like(bits)
    digits: list[Tensor] = []
    for column in reversed(columns):
        total = column + carry
        digits.insert(0, total & (2**_DIGIT - 1))
        carry = total >> _DIGIT
    # The first digit has the two bits of the quarter, and 22 bits of the fraction.
    first = digits[0] & (2 ** (_DIGIT - 2) - 1)
    up = first >> (_DIGIT - 3)
    quarter = (digits[0] >> (_DIGIT - 2)) + up
    fraction, unit = torch.zeros_like(x), 2.0 ** -(_DIGIT - 2)
    for digit in (first - (up << (_DIGIT - 2)), *digits[1:]):
        fraction, unit = fraction + digit.double() * unit, unit * 2.0**-_DIGIT
    r = fraction * (math.pi / 2)
    return torch.where(x < 0, -r, r), torch.where(x < 0, -quarter, quarter) % 4


@functools.cache
def _two_over_pi() -> Tensor:
    """For each exponent e: 2^(e - 52) · 2/π modulo 4, in digits of 24 bits, int64 (1024, 8)."""
    places, bits = 1024 + 53 + _DIGITS * _DIGIT, _DIGITS * _DIGIT
    two_over_pi = (2 << (2 * places)) // _pi(places)
    rows = []
    for exponent in range(1024):
        value = two_over_pi >> (places - (bits - 2) - (exponent - 52))
        shifts = range(bits - _DIGIT, -1, -_DIGIT)
        rows.append([value >> shift & (2**_DIGIT - 1) for shift in shifts])
    return torch.tensor(rows, device="cpu")


def _pi(places: int) -> int:
    """π · 2^places, by Machin's formula in integers."""
    guard = 32

    def arctan_of_inverse(n: int) -> int:
        term = (1 << (places + guard)) // n
        total, k, square = term, 1, n * n
        while term:
            term //= square
            k += 2
            total += term // k if k % 4 == 1 else -(term // k)
        return total

    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> guard


_ATAN = tuple((-1) ** n / (2 * n + 1) for n in range(22))
_TAN_PI_8 = 0.41421356237309503


def atan(x: Tensor) -> Tensor:
    """The arc tangent, by its series within π/8 of 0, π/4 and π/2."""
    x = x.double()
    y = x.abs()
    middle, far = y > _TAN_PI_8, y > 1 / _TAN_PI_8
    t = torch.where(far, -1 / y, torch.where(middle, (y - 1) / (y + 1), y))
    start = (middle.double() + far.double()) * (math.pi / 4)
    result = start + t * polynomial(t * t, _ATAN)
    return torch.where(x.signbit(), -result, result)


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """The angle of the point (x, y), from -π to π."""
    y, x = torch.broadcast_tensors(y.double(), x.double())
    a, b = y.abs(), x.abs()
    larger, smaller = torch.maximum(a, b), torch.minimum(a, b)
    ratio = torch.where(smaller == larger, (smaller == smaller).double(), smaller / larger)
    ratio = torch.where(larger == 0, 0.0, ratio)
    angle = atan(ratio)
    angle = torch.where(a > b, math.pi / 2 - angle, angle)
    angle = torch.where(x.signbit(), math.pi - angle, angle)
    result = torch.where(y.signbit(), -angle, angle)
    return torch.where(x.isnan() | y.isnan(), math.nan, result)


def asin(x: Tensor) -> Tensor:
    """The arc sine: NaN beyond 1."""
    x = x.double()
    return atan2(x, sqrt((1 - x) * (1 + x)))


def acos(x: Tensor) -> Tensor:
    """The arc cosine: NaN beyond 1."""
    x = x.double()
    return 2 * atan2(sqrt(1 - x), sqrt(1 + x))
