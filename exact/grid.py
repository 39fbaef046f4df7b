"""Sums whose result does not depend on the order of summation.

Numbers are rounded to a grid so coarse that every partial sum lies on it, too. Then no
addition rounds, all orders give one result, and any float64 routine may compute it: one
thread or many, MKL, OpenBLAS or cuBLAS. Three steps, kept apart so that several workers
can share them (a maximum over all, a rounding each, a sum over all):

1. `scale`: the size of the largest number along the dimension to be summed;
2. `snap`: rounding to the grid that this size and a number of bits define;
3. a float64 sum or matrix product, which is exact by construction.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from exact.errors import NotExactError

BITS = 53  # of a float64's significand
_EXPONENT = 0x7FF << 52  # the bits of its exponent


class Peers(NamedTuple):
    """The workers between which the terms of each sum are divided, as `distributed` has them."""

    terms: int  # of each sum, on all workers together
    maximum: Callable[[Tensor], Tensor]  # the largest of the workers' numbers, by element
    total: Callable[[Tensor], Tensor]  # the sum of the workers' numbers, by element


class _Thread(threading.local):
    peers: Peers | None = None


_THREAD = _Thread()


@contextlib.contextmanager
def divided(peers: Peers) -> Iterator[None]:
    """Within the block, every sum and product is that of the terms of all workers."""
    _THREAD.peers = peers
    try:
        yield
    finally:
        _THREAD.peers = None


def peers() -> Peers | None:
    """The workers that share the sums of this thread; None where it has all terms itself."""
    return _THREAD.peers


def scale(x: Tensor, dims: list[int]) -> Tensor:
    """2 ** floor(log2(max(abs(x)))) along `dims`, float64, with these dimensions kept.

    At least 2^-1022, the smallest normal number, on whose grid subnormal numbers lie; infinity
    where one is infinite or NaN.
    """
    if x.numel() == 0:
        shape = [1 if i in [d % x.dim() for d in dims] else n for i, n in enumerate(x.shape)]
        largest = x.new_zeros(shape)
    else:
        largest = x.abs().amax(dims, keepdim=True)
    size = power_of_two_below(largest)
    return others.maximum(size) if (others := peers()) else size


def power_of_two_below(x: Tensor) -> Tensor:
    """2 ** floor(log2(x)) of numbers >= 0, at least 2^-1022, in float64."""
    # Read off the number's bits, as logarithms are rounded differently on each machine.
    return (x.double().view(torch.int64) & _EXPONENT).view(torch.float64).clamp_(min=2.0**-1022)


def snap(x: Tensor, scale: Tensor | float, bits: int) -> Tensor:
    """Return x in float64, rounded half to even to multiples of 2 · scale / 2^bits.

    NaN where the scale is infinite.
    """
    # The last place of a number of this size is the grid's step, so adding it rounds.
    shift = scale * (1.5 * 2.0 ** (BITS - bits))
    return x.to(torch.float64, copy=True).add_(shift).sub_(shift)


def sum(  # noqa: A001
    x: Tensor, dims: list[int], keepdim: bool = False, largest: float | None = None
) -> Tensor:
    """The sum along `dims` in float64, of numbers rounded to a grid of 53 - log2(n) bits.

    The grid is that of the largest magnitude, or of `largest`, a power of two. An
    empty list stands for all dimensions.
    """
    if not dims:
        dims = list(range(x.dim()))
    n = math.prod(x.shape[dim] for dim in dims) if x.dim() else 1
    others = peers()
    n = others.terms if others else n
    if n <= 2:  # at most one addition: there is no other order
        terms = x.double() + 0.0
    else:
        terms = snap(x, scale(x, dims) if largest is None else largest, sum_bits(n))
    sums = terms.sum(dims, keepdim=keepdim)
    return others.total(sums) if others else sums


def segment_sum(x: Tensor, segments: Tensor, n: int) -> Tensor:
    """The sums of the numbers of x (k,) by segment, given as int64 (k,): float64 (n,).

    Each segment has a grid of its own, so its sum depends on its numbers alone.
    """
    zeros = torch.zeros(n, dtype=torch.float64, device=x.device)
    sizes = zeros.scatter_reduce(0, segments, power_of_two_below(x), "amax")
    counts = torch.bincount(segments, minlength=n)
    if others := peers():
        sizes, counts = others.maximum(sizes), others.total(counts)
    growth = power_of_two_below((2 * counts - 1).clamp_(min=0))  # 2^headroom
    scales = torch.where(counts <= 2, 0.0, sizes * growth)  # 0: nothing to round, as in `sum`
    sums = zeros.scatter_add_(0, segments, snap(x, scales[segments], BITS))
    return others.total(sums) if others else sums


def mean(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """The exact sum along `dims` in float64, divided by the number of its terms."""
    sums = sum(x, dims, keepdim)
    n = others.terms if (others := peers()) else x.numel() // max(sums.numel(), 1)
    # By a tensor: on a GPU, division by a number multiplies by the reciprocal.
    return sums.div_(torch.full_like(sums, n))


def sum_bits(n: int) -> int:
    """The bits that each number of a sum of n may have."""
    return BITS - headroom(n)


def headroom(n: int) -> int:
    """ceil(log2 n), the bits by which a sum of n numbers can grow."""
    return max(n - 1, 0).bit_length()


def require_floating_point(x: Tensor) -> None:
    """Raise TypeError for integers, as PyTorch does; else results would be cut to integers.

    Raise NotExactError for complex numbers, which PyTorch accepts.
    """
    if x.is_complex():
        raise NotExactError(f"numbers of {x.dtype}: only real numbers are exact")
    if not x.is_floating_point():
        raise TypeError(f"expected numbers of a floating-point type, not {x.dtype}")


def require_same_type(a: Tensor, b: Tensor) -> None:
    """Raise TypeError for two dtypes, as PyTorch does where it does not promote one of them."""
    if a.dtype != b.dtype:
        raise TypeError(f"expected numbers of the same type, not {a.dtype} and {b.dtype}")


def representable(dtype: torch.dtype, *numbers: float) -> bool:
    """Whether the numbers are integers that the dtype represents."""
    return torch.tensor(numbers).to(dtype).tolist() == list(numbers)
