"""Checks that this machine keeps the rules that exactness rests on."""

import functools
import sys

import torch
from torch import Tensor

from exact.errors import MachineError
from exact.products import product_bits

__all__ = ["check"]


def check(device: str = "cpu") -> None:
    """Raise MachineError if rounding, subnormals or float64 products are wrong.

    Subnormals and rounding are probed on every worker thread each time, as a library
    that was loaded in between may have changed a thread's mode (llvm#57589); products
    once per device, as their code does not change.
    """
    if sys.maxsize < 2**32:
        raise MachineError("a 32-bit Python: exact arithmetic needs 64 bits")
    n = max(2, torch.get_num_threads()) << 15  # enough for every thread to get a part
    tiny = torch.full((n,), 2.0**-1070, dtype=torch.float64, device=device)
    # By their bits: a comparison, too, takes subnormal numbers for zero where they are flushed.
    if not bool(((tiny * 0.5).view(torch.int64) == 1 << 3).all()):
        raise MachineError("subnormal numbers are flushed to zero: torch.set_flush_denormal(False)")
    one = torch.ones(n, dtype=torch.float64, device=device)
    half = torch.tensor([2.0**-53, 3 * 2.0**-53], dtype=torch.float64, device=device)
    if not bool((one + half[0] == 1).all() and (one + half[1] == 1 + 2.0**-51).all()):
        raise MachineError("numbers are not rounded to the nearest, half to even")
    _check_products(device)


@functools.cache
def _check_products(device: str) -> None:
    """Compare float64 products with integer ones, with all bits in use."""
    for n, k, m in ((17, 784, 9), (5, 65_536, 3)):
        a_bits, b_bits = product_bits(k)
        a, b = _integers((n, k), a_bits), _integers((k, m), b_bits)
        expected = torch.stack([(a * column).sum(1) for column in b.unbind(1)], 1)
        product = (a.double().to(device) @ b.double().to(device)).cpu()
        if not torch.equal(product.long(), expected):
            raise MachineError(
                "float64 matrix products are not exact: is an emulation switched on?"
            )


def _integers(shape: tuple[int, int], bits: int) -> Tensor:
    """Integers of full size with mixed low bits and signs, without a random generator."""
    i = torch.arange(shape[0] * shape[1], device="cpu").view(shape)
    sign = torch.where((i * 31) % 7 < 2, -1, 1)
    return sign * ((1 << bits) - 1 - (i * 40_503) % 1021)
