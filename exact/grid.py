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
from torch.utils.weak import WeakTensorKeyDictionary

from exact.functions import ldexp

__all__ = [
    "from_bytes",
    "holds",
    "matmul",
    "mean",
    "product_bits",
    "require_fractions",
    "require_same_type",
    "scale",
    "snap",
    "sum_bits",
    "total",
    "totals",
]

_BITS = 53  # of a float64
_EXPONENT = 0x7FF << 52  # its exponent's bits
# Of each marked tensor its bytes, and its version then: beside it and not its attribute, as
# a copy takes attributes along and counts its versions anew.
_MARKS = WeakTensorKeyDictionary()
_ROWS = 512  # at a time in products with bytes, so that what lies between fits into caches


def scale(x: Tensor, dims: list[int]) -> Tensor:
    """The largest power of two that a magnitude along `dims` reaches, these kept with size 1.

    In float64, and read off the number's bits, as logarithms are rounded differently from
    machine to machine. 2^-1022, the smallest normal number, below it, as subnormal numbers lie
    on its grid; infinity where one is infinite or NaN.
    """
    if x.numel() == 0:
        shape = [1 if i in [d % x.dim() for d in dims] else n for i, n in enumerate(x.shape)]
        return _size(x.new_zeros(shape))
    return _size(x.abs().amax(dims, keepdim=True))


def _size(x: Tensor) -> Tensor:
    """The largest power of two that each number's magnitude reaches, as by `scale`."""
    return (x.double().view(torch.int64) & _EXPONENT).view(torch.float64).clamp_(min=2.0**-1022)


def snap(x: Tensor, scale: Tensor | float, bits: int) -> Tensor:
    """Return x in float64, rounded half to even to multiples of 2 · scale / 2^bits.

    By adding and subtracting a number whose last place is the grid's step. NaN where
    the scale is infinite.
    """
    shift = scale * (1.5 * 2.0 ** (_BITS - bits))
    return x.to(torch.float64, copy=True).add_(shift).sub_(shift)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of (…, n, k) and (…, k, m) in float64, of operands rounded to a grid.

    With 21 and 22 bits for k = 784, a little less than float32's 24. A row of the
    result depends on that row of `a` alone, not on the batch that it is part of.
    """
    if a.dtype == torch.float64:
        return _product64(a, b)
    a_bits, b_bits = product_bits(a.shape[-1])
    a_bytes, b_bytes = _bytes(a), _bytes(b)
    a_size = scale(a, [-1]) if a_bytes is None else None
    b_size = scale(b, [-2]) if b_bytes is None else None
    if a_size is not None and b_bytes is not None and _fits_int8(a, a_size, b):
        return _int8_product(a, a_size, a_bits, b_bytes)
    if b_size is not None and a_bytes is not None and _fits_int8(b, b_size, a):
        return _int8_product(b.t(), b_size.t(), b_bits, a_bytes.t(), turned=True)
    a = a.double() if a_size is None else snap(a, a_size, a_bits)
    b = b.double() if b_size is None else snap(b, b_size, b_bits)
    return torch.matmul(a, b)


def _product64(a: Tensor, b: Tensor) -> Tensor:
    """The product of float64 matrices, whose sizes leave no room: so first brought to size 1."""
    a_bits, b_bits = product_bits(a.shape[-1])
    a_size, b_size = scale(a, [-1]), scale(b, [-2])
    product = torch.matmul(snap(a / a_size, 1.0, a_bits), snap(b / b_size, 1.0, b_bits))
    exponent = (a_size.view(torch.int64) >> 52) + (b_size.view(torch.int64) >> 52) - 2 * 1023
    return ldexp(product, exponent)


def product_bits(k: int) -> tuple[int, int]:
    """Bits for both operands of a contraction of length k: a + b + ceil(log2 k) <= 53.

    At the most 22, as more would not fit into three bytes with a sign.
    """
    bits = _BITS - _headroom(k)
    return min(bits // 2, 22), min(bits - bits // 2, 22)


def from_bytes(x: Tensor) -> Tensor:
    """Numbers x / 256 of [0, 1) as float32, for x of uint8, marked with the bytes they come from.

    They lie on every grid, so products need not round them, and where the CPU has
    instructions for bytes use these. Indexing under the mode passes the mark on, a transposed
    view has it, a copy has not; without it a product is the same, but slower. A change by
    PyTorch ends it; one through `.numpy()` or `.data` is not seen, so make none.
    Raises TypeError for other types than uint8.
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"expected bytes (torch.uint8), not {x.dtype}")
    return _from_signed((x ^ 0x80).view(torch.int8))  # x - 128


def move_bytes(x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """The result of an operation that moves numbers, marked if x is."""
    bytes_ = _bytes(x)
    return operation(x) if bytes_ is None else _from_signed(operation(bytes_))


def _from_signed(bytes_: Tensor) -> Tensor:
    return _mark(bytes_.float().add_(128).mul_(1 / 256), bytes_)


def _mark(x: Tensor, bytes_: Tensor) -> Tensor:
    if not x.is_inference():  # whose changes are not counted
        _MARKS[x] = (bytes_, x._version)
    return x


def _bytes(x: Tensor) -> Tensor | None:
    """The bytes, less 128, that x or the matrix that it is the transpose of is marked with.

    Unless they have changed since: views count their versions together.
    """
    bytes_, version = _MARKS.get(x, (None, 0))
    base = x._base
    if bytes_ is None and base is not None and _is_transpose(x, base):
        bytes_, version = _MARKS.get(base, (None, 0))
        bytes_ = None if bytes_ is None else bytes_.t()
    return None if bytes_ is None or version != x._version else bytes_


def _is_transpose(x: Tensor, base: Tensor) -> bool:
    return bool(
        x.dim() == 2 and x.dtype == base.dtype and x.shape == base.shape[::-1]
        and x.stride() == base.stride()[::-1] and x.storage_offset() == base.storage_offset()
    )  # fmt: skip


def _fits_int8(x: Tensor, size: Tensor, other: Tensor) -> bool:
    return (
        x.dtype == torch.float32 and x.dim() == other.dim() == 2 and x.device.type == "cpu"
        and x.numel() > 0 and other.numel() > 0 and max(x.shape) <= 65_536 and _has_int8()
        and bool(size.amax() < 2.0**110)  # room for the shift in float32; not so infinity
    )  # fmt: skip


@functools.cache
def _has_int8() -> bool:
    """Whether the CPU multiplies bytes fast and without saturation."""
    if not torch.cpu._is_vnni_supported():
        return False
    # Its libraries can be told not to use them: then sums of two products saturate, in
    # kernels that depend on the sizes. So probe several with the extremes in all pairs.
    for n, k, m in ((3, 4, 2), (96, 256, 48), (768, 784, 256)):
        a = torch.tensor([[127], [-128]]).repeat(n, k)[:n]
        b = torch.tensor([[127, -128]]).repeat(k, m)[:, :m]
        products = torch._int_mm(a.to(torch.int8), b.to(torch.int8))
        if not torch.equal(products.long(), k * a[:, :1] * b[:1]):
            return False
    return True


def _int8_product(
    a: Tensor, size: Tensor, bits: int, bytes_: Tensor, turned: bool = False
) -> Tensor:
    """The product of a (n, k), rounded, and (bytes + 128) / 256 (k, m), in float64: (n, m).

    Or turned, (m, n): results are laid out row by row, as of others products are slow.
    """
    n, k = a.shape
    if n > _ROWS:
        parts = [
            _int8_product(rows, sizes, bits, bytes_, turned)
            for rows, sizes in zip(a.split(_ROWS), size.split(_ROWS), strict=True)
        ]
        return torch.cat(parts, dim=1 if turned else 0)
    # As in `snap`, but in float32, where the bits of the sum count the grid's steps. Their
    # bytes are three digits from 0 to 255 of i + 0x8080, and less 128 each the lower two
    # are from -128 to 127, as the highest is: i = d0 + 256 d1 + 65536 d2.
    shift = (size * (1.5 * 2.0 ** (24 - bits))).float()
    digits = (a + shift).view(torch.int32).sub_(shift.view(torch.int32) - 0x8080)
    sums, step = digits.sum(1, keepdim=True) - 0x8080 * k, size * (2.0 ** (1 - bits))
    step.clamp_(min=2.0**-149)  # the smallest that float32 counts in
    digits.bitwise_xor_(0x8080)
    # One matrix of all planes, in the layout of a: to turn it would take longer than to fill it.
    if a.is_contiguous():
        planes = torch.empty((3, n, k), dtype=torch.int8)
        stacked = planes.view(3 * n, k)
    else:
        planes = torch.empty((k, 3, n), dtype=torch.int8).permute(1, 2, 0)
        stacked = planes.permute(2, 0, 1).view(k, 3 * n).t()
    for i, plane in enumerate(planes):
        plane.copy_(digits if i == 0 else digits.bitwise_right_shift_(8))  # the lowest byte
    if turned:
        d0, d1, d2 = torch._int_mm(bytes_.t(), stacked.t()).view(-1, 3, n).unbind(1)
        sums, step = sums.t(), step.t()
    else:
        d0, d1, d2 = torch._int_mm(stacked, bytes_).view(3, n, -1)
    # As |i| <= 2^bits, d1 + 256 d2 is at most 2^(bits - 8) + 1/2: times k bytes, does it fit?
    if k * (2 ** (bits - 1) + 64) < 2**31:
        d1.add_(d2, alpha=256)
    else:
        d1 = d1.double().add_(d2.double(), alpha=256)
    total = d0.double().add_(d1.double(), alpha=256)
    result: Tensor = total.add_(sums * 128).mul_(step / 256)
    return result


def total(
    x: Tensor, dims: list[int], keepdim: bool = False, largest: float | None = None
) -> Tensor:
    """The sum along `dims` in float64, of numbers rounded to a grid of 53 - log2(n) bits.

    The grid is that of the largest magnitude, which is searched unless given, as a power of two.
    """
    if not dims:
        dims = list(range(x.dim()))
    n = math.prod(x.shape[dim] for dim in dims) if x.dim() else 1
    if n <= 2:  # one sum, or none: there is no other order
        return (x.double() + 0.0).sum(dims, keepdim=keepdim)
    size = scale(x, dims) if largest is None else largest
    return snap(x, size, sum_bits(n)).sum(dims, keepdim=keepdim)


def totals(x: Tensor, places: Tensor, n: int) -> Tensor:
    """The n sums, in float64, of the numbers of x (k,) that go to each of n places (k,).

    As by `total`: rounded to a grid that the numbers of a place alone decide.
    """
    zeros = torch.zeros(n, dtype=torch.float64, device=x.device)
    sizes = zeros.scatter_reduce(0, places, _size(x), "amax")
    counts = torch.bincount(places, minlength=n)
    growth = _size((2 * counts - 1).clamp_(min=0))  # 2^headroom
    scales = torch.where(counts <= 2, 0.0, sizes * growth)  # 0: nothing to round, as in `total`
    return zeros.scatter_add_(0, places, snap(x, scales[places], _BITS))


def mean(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """The exact sum along `dims` in float64, divided by the number of its terms."""
    sums = total(x, dims, keepdim)
    # By a tensor: on a GPU, division by a number multiplies by the reciprocal.
    return sums.div_(torch.full_like(sums, x.numel() // max(sums.numel(), 1)))


def require_fractions(x: Tensor) -> None:
    """Raise TypeError for integers, as PyTorch does; else results would be cut to integers."""
    if not x.is_floating_point():
        raise TypeError(f"expected numbers of a floating-point type, not {x.dtype}")


def require_same_type(a: Tensor, b: Tensor) -> None:
    """Raise TypeError for two types, as PyTorch does where it does not choose one of them."""
    if a.dtype != b.dtype:
        raise TypeError(f"expected numbers of the same type, not {a.dtype} and {b.dtype}")


def holds(dtype: torch.dtype, *numbers: float) -> bool:
    """Whether the numbers are integers of this type."""
    return torch.tensor(numbers).to(dtype).tolist() == list(numbers)


def sum_bits(n: int) -> int:
    """Bits for a sum of n numbers."""
    return _BITS - _headroom(n)


def _headroom(n: int) -> int:
    """ceil(log2 n), the bits by which a sum of n numbers can grow."""
    return max(n - 1, 0).bit_length()
