"""Sums and products of matrices whose result does not depend on the order of summation.

Numbers are rounded to a grid so coarse that every partial sum lies on it, too. Then
no addition rounds, all orders give one result, and any float64 routine may compute it:
MKL, OpenBLAS, cuBLAS, one thread or many. Three steps, kept apart so that several
workers can share them (a maximum over all, a rounding each, a sum over all):

1. `scale`: the size of the largest number, along the dimension to be summed;
2. `snap`: rounding to the grid that this size and a number of bits define;
3. a float64 sum or matrix product, exact by construction.
"""

import torch
from torch import Tensor

__all__ = ["matmul", "product_bits", "scale", "snap", "total"]

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
    return torch.matmul(snap(a, scale(a, [-1]), a_bits), snap(b, scale(b, [-2]), b_bits))


def product_bits(k: int) -> tuple[int, int]:
    """Bits for both operands of a contraction of length k: a + b + ceil(log2 k) = 53."""
    bits = _BITS - _headroom(k)
    return bits // 2, bits - bits // 2


def total(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """The sum along `dims` in float64, of numbers rounded to a grid of 53 - log2(n) bits."""
    if not dims:
        dims = list(range(x.dim()))
    n = 1
    for dim in dims:
        n *= x.shape[dim]
    return snap(x, scale(x, dims), _BITS - _headroom(n)).sum(dims, keepdim=keepdim)


def _headroom(n: int) -> int:
    """ceil(log2 n), the bits by which a sum of n numbers can grow."""
    return max(n - 1, 0).bit_length()
