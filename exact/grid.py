"""Sums and products of matrices whose result does not depend on the order of summation.

Numbers are rounded to a grid so coarse that every partial sum lies on it, too. Then
no addition rounds, all orders give one result, and any float64 routine may compute it:
MKL, OpenBLAS, cuBLAS, one thread or many. Three steps, kept apart so that several
workers can share them (a maximum over all, a rounding each, a sum over all):

1. `scale`: the size of the largest number, along the dimension to be summed;
2. `snap`: rounding to the grid that this size and a number of bits define;
3. a float64 sum or matrix product, exact by construction.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "from_bytes",
    "keep_bytes",
    "matmul",
    "product_bits",
    "scale",
    "snap",
    "sum_bits",
    "total",
]

_BITS = 53  # of a float64
_TOP = 0x7FF  # the exponent field of infinity and NaN


def scale(x: Tensor, dims: list[int]) -> Tensor:
    """The exponent field of the largest magnitude along `dims`, int64, these kept with size 1.

    Read off the float's bits, as logarithms are rounded differently from machine to
    machine. Infinity and NaN have the largest field.
    """
    if x.numel() == 0:
        shape = [1 if i in [d % x.dim() for d in dims] else n for i, n in enumerate(x.shape)]
        return torch.zeros(shape, dtype=torch.int64, device=x.device)
    return x.abs().amax(dims, keepdim=True).double().view(torch.int64) >> 52


def snap(x: Tensor, exponent: Tensor, bits: int) -> Tensor:
    """Return x in float64, rounded half to even to multiples of 2^(E - bits), E > all log2 |x|.

    By adding and subtracting 1.5 · 2^(E + 52 - bits), whose last place is the grid's
    step. NaN where the scale is infinite or NaN.
    """
    shift = (((exponent + (_BITS - bits)).clamp(max=_TOP) << 52) | (1 << 51)).view(torch.float64)
    return x.to(torch.float64, copy=True).add_(shift).sub_(shift)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of (…, n, k) and (…, k, m) in float64, of operands rounded to a grid.

    With 21 and 22 bits for k = 784, a little less than float32's 24. A row of the
    result depends on that row of `a` alone, not on the batch that it is part of.
    """
    a_bits, b_bits = product_bits(a.shape[-1])
    a_bytes, b_bytes = _bytes(a), _bytes(b)
    if b_bytes is not None and _fits_int8(a, b):
        return _int8_product(a, a_bits, b_bytes)
    if a_bytes is not None and _fits_int8(b, a):
        return _int8_product(b.t(), b_bits, a_bytes.t()).t()
    a = a.double() if a_bytes is not None else snap(a, scale(a, [-1]), a_bits)
    b = b.double() if b_bytes is not None else snap(b, scale(b, [-2]), b_bits)
    return torch.matmul(a, b)


def product_bits(k: int) -> tuple[int, int]:
    """Bits for both operands of a contraction of length k: a + b + ceil(log2 k) <= 53.

    At the most 22, as more would not fit into three bytes with a sign.
    """
    bits = _BITS - _headroom(k)
    return min(bits // 2, 22), min(bits - bits // 2, 22)


def from_bytes(x: Tensor) -> Tensor:
    """Numbers x / 256 of [0, 1) as float32, for x of uint8, marked with the bytes they come from.

    They lie on every grid, so products need not round them, and where the CPU has
    instructions for bytes use these. The mark is an attribute, which indexing and
    transposing under the mode pass on; without it a product is the same, but slower.
    """
    result = x.float() / 256
    return _mark(result, (x ^ 0x80).view(torch.int8))  # x - 128, as int8


def keep_bytes(result: Tensor, x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Mark the result of an operation that moved the numbers of x, if x is marked."""
    bytes_ = _bytes(x)
    return result if bytes_ is None else _mark(result, operation(bytes_))


def _mark(x: Tensor, bytes_: Tensor) -> Tensor:
    x._exact_bytes = (bytes_, x._version)  # type: ignore[attr-defined]
    return x


def _bytes(x: Tensor) -> Tensor | None:
    """The bytes, less 128, that x is marked with, unless it has changed since."""
    bytes_, version = getattr(x, "_exact_bytes", (None, 0))
    return bytes_ if bytes_ is not None and version == x._version else None


def _fits_int8(x: Tensor, other: Tensor) -> bool:
    return (
        x.dtype == torch.float32 and x.dim() == other.dim() == 2 and x.device.type == "cpu"
        and x.numel() > 0 and other.numel() > 0 and max(x.shape) <= 65_536 and _has_int8()
    )  # fmt: skip


@functools.cache
def _has_int8() -> bool:
    """Whether the CPU multiplies bytes fast and without saturation."""
    if not torch.cpu._is_vnni_supported():
        return False
    a, b = torch.full((8, 64), -128, dtype=torch.int8), torch.full((64, 8), -128, dtype=torch.int8)
    return bool((torch._int_mm(a, b) == 128 * 128 * 64).all())


def _int8_product(a: Tensor, bits: int, bytes_: Tensor) -> Tensor:
    """The product of a (n, k), rounded, and (bytes + 128) / 256 (k, m), in float64."""
    exponent = scale(a, [-1])
    # As integers of 22 bits and a sign, exact in the range of float64: clamped is only 0.
    factor = ((2045 + bits - exponent).clamp(max=2046) << 52).view(torch.float64)
    integers = a.to(torch.float64, copy=True).mul_(factor).round_().to(torch.int32)
    # Three digits of base 256 from -128 to 127: i = d0 + 256 d1 + 65536 d2.
    digits = (integers + 0x8080).bitwise_xor_(0x8080)
    planes = torch.empty((3, *a.shape), dtype=torch.int8)
    for plane in planes:
        plane.copy_(digits)  # the lowest byte
        digits >>= 8
    d0, d1, d2 = torch._int_mm(planes.view(-1, a.shape[1]), bytes_).view(3, len(a), -1)
    total = d2.double().mul_(256).add_(d1).mul_(256).add_(d0)
    total.add_(integers.sum(1, keepdim=True).mul_(128))
    step = torch.where(exponent == _TOP, math.nan, 1 / (factor * 256))
    result: Tensor = total.mul_(step)
    return result


def total(
    x: Tensor, dims: list[int], keepdim: bool = False, largest: float | None = None
) -> Tensor:
    """The sum along `dims` in float64, of numbers rounded to a grid of 53 - log2(n) bits.

    The grid is that of the largest magnitude, which is searched unless it is given.
    """
    if not dims:
        dims = list(range(x.dim()))
    n = 1
    for dim in dims:
        n *= x.shape[dim]
    if largest is None:
        exponent = scale(x, dims)
    else:
        exponent = torch.full((1,) * x.dim(), math.frexp(largest)[1] + 1022, device=x.device)
    return snap(x, exponent, sum_bits(n)).sum(dims, keepdim=keepdim)


def sum_bits(n: int) -> int:
    """Bits for a sum of n numbers."""
    return _BITS - _headroom(n)


def _headroom(n: int) -> int:
    """ceil(log2 n), the bits by which a sum of n numbers can grow."""
    return max(n - 1, 0).bit_length()
