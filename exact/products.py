"""Matrix products whose result does not depend on the order of summation."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from exact.bytes import signed_bytes
from exact.functions import ldexp
from exact.grid import BITS, headroom, peers, scale, snap

__all__ = ["compiled", "computed_by", "matmul", "product_bits"]

_ROWS = 512  # at a time in products with bytes, so that intermediate results fit into caches


class Kernels(Protocol):
    """Functions that compute products and convolutions, or return None, as exact.kernels has."""

    def multiply(self, *args: Any, **kwargs: Any) -> Tensor | None: ...
    def convolve(self, *args: Any, **kwargs: Any) -> Tensor | None: ...
    def convolve_gradients(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor] | None: ...


class _Thread(threading.local):
    kernels: Kernels | None = None


_THREAD = _Thread()


@contextlib.contextmanager
def computed_by(kernels: Kernels) -> Iterator[None]:
    """Let the kernels compute products in this thread; where one returns None, PyTorch does."""
    before, _THREAD.kernels = _THREAD.kernels, kernels
    try:
        yield
    finally:
        _THREAD.kernels = before


def compiled() -> Kernels | None:
    """The kernels that compute products in this thread; None where PyTorch does."""
    return None if peers() else _THREAD.kernels


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of (…, n, k) and (…, k, m) in float64, of operands rounded to a grid.

    Of 21 and 22 bits for k = 784, a little less than float32's 24. A row of the
    result depends on that row of `a` alone, not on the batch that it is part of.
    """
    if (kernels := compiled()) and (found := kernels.multiply(a, b)) is not None:
        return found
    others = peers()
    bits = product_bits(others.terms if others else a.shape[-1])
    product = _product64(a, b, *bits) if a.dtype == torch.float64 else _product32(a, b, *bits)
    return others.total(product) if others else product


def _product32(a: Tensor, b: Tensor, a_bits: int, b_bits: int) -> Tensor:
    a_bytes, b_bytes = signed_bytes(a), signed_bytes(b)
    # Of peers, all have to ask for a size or none, so they do not spare it where they have bytes.
    a_size = scale(a, [-1]) if a_bytes is None or peers() else None
    b_size = scale(b, [-2]) if b_bytes is None or peers() else None
    if a_size is not None and b_bytes is not None and _fits_int8(a, a_size, b):
        return _int8_product(a, a_size, a_bits, b_bytes)
    if b_size is not None and a_bytes is not None and _fits_int8(b, b_size, a):
        return _int8_product(b.t(), b_size.t(), b_bits, a_bytes.t(), transposed=True)
    a = a.double() if a_size is None else snap(a, a_size, a_bits)
    b = b.double() if b_size is None else snap(b, b_size, b_bits)
    return _multiply(a, b)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    product = torch.matmul(a, b)
    # One term is a sum, too: -0.0 would become 0.0, but not in every library.
    return product.add_(0.0) if a.shape[-1] == 1 else product


@functools.cache
def product_bits(k: int) -> tuple[int, int]:
    """Bits for both operands of a contraction of length k: a + b + ceil(log2 k) <= 53.

    At most 22, as more would not fit into three bytes with a sign.
    """
    bits = BITS - headroom(k)
    return min(bits // 2, 22), min(bits - bits // 2, 22)


def _product64(a: Tensor, b: Tensor, a_bits: int, b_bits: int) -> Tensor:
    """The product of float64 matrices, brought to size 1 first so that shifts cannot overflow."""
    a_size, b_size = scale(a, [-1]), scale(b, [-2])
    product = _multiply(snap(a / a_size, 1.0, a_bits), snap(b / b_size, 1.0, b_bits))
    exponent = (a_size.view(torch.int64) >> 52) + (b_size.view(torch.int64) >> 52) - 2 * 1023
    return ldexp(product, exponent)


def _fits_int8(x: Tensor, size: Tensor, other: Tensor) -> bool:
    matrices = x.dtype == torch.float32 and x.dim() == other.dim() == 2 and x.device.type == "cpu"
    if not (matrices and x.numel() and other.numel() and max(x.shape) <= 65_536 and _has_int8()):
        return False
    return bool(size.amax() < 2.0**110)  # room for the shift in float32; not so infinity


@functools.cache
def _has_int8() -> bool:
    """Whether the CPU multiplies bytes fast and without saturation."""
    if not torch.cpu._is_vnni_supported():
        return False
    # Its libraries can be told not to use them: then sums of two products saturate, in
    # kernels that depend on the sizes. So probe several with the extremes in all pairs.
    for n, k, m in ((3, 4, 2), (96, 256, 48), (768, 784, 256)):
        a = torch.tensor([[127], [-128]], device="cpu").repeat(n, k)[:n]
        b = torch.tensor([[127, -128]], device="cpu").repeat(k, m)[:, :m]
        products = torch._int_mm(a.to(torch.int8), b.to(torch.int8))
        if not torch.equal(products.long(), k * a[:, :1] * b[:1]):
            return False
    return True


def _int8_product(
    a: Tensor, size: Tensor, bits: int, bytes_: Tensor, transposed: bool = False
) -> Tensor:
    """The product of a (n, k), rounded, and (bytes + 128) / 256 (k, m), in float64: (n, m).

    Or transposed, (m, n): results are laid out row by row, as products of others are slow.
    """
    n, k = a.shape
    if n > _ROWS:
        parts = [
            _int8_product(rows, sizes, bits, bytes_, transposed)
            for rows, sizes in zip(a.split(_ROWS), size.split(_ROWS), strict=True)
        ]
        return torch.cat(parts, dim=1 if transposed else 0)
    # As in `snap`, but in float32, where the bits of the sum count the grid's steps. Their
    # bytes are three digits from 0 to 255 of i + 0x8080, and less 128 each the lower two
    # are from -128 to 127, as the highest is: i = d0 + 256 d1 + 65536 d2.
    shift = (size * (1.5 * 2.0 ** (24 - bits))).float()
    digits = (a + shift).view(torch.int32).sub_(shift.view(torch.int32) - 0x8080)
    sums, step = digits.sum(1, keepdim=True) - 0x8080 * k, size * (2.0 ** (1 - bits))
    step.clamp_(min=2.0**-149)  # the smallest that float32 counts in
    digits.bitwise_xor_(0x8080)
    # One matrix of all planes, in the layout of a: transposing it would take longer.
    if a.is_contiguous():
        planes = torch.empty((3, n, k), dtype=torch.int8, device="cpu")
        stacked = planes.view(3 * n, k)
    else:
        planes = torch.empty((k, 3, n), dtype=torch.int8, device="cpu").permute(1, 2, 0)
        stacked = planes.permute(2, 0, 1).view(k, 3 * n).t()
    for i, plane in enumerate(planes):
        plane.copy_(digits if i == 0 else digits.bitwise_right_shift_(8))  # the lowest byte
    if transposed:
        d0, d1, d2 = torch._int_mm(bytes_.t(), stacked.t()).view(-1, 3, n).unbind(1)
        sums, step = sums.t(), step.t()
    else:
        d0, d1, d2 = torch._int_mm(stacked, bytes_).view(3, n, -1)
    # As |i| <= 2^bits, d1 + 256 d2 is at most 2^(bits - 8) + 1/2: times k bytes, does it fit?
    if k * (2 ** (bits - 1) + 64) < 2**31:
        d1.add_(d2, alpha=256)
    else:
        d1 = d1.double().add_(d2.double(), alpha=256)
    result: Tensor = d0.double().add_(d1.double(), alpha=256).add_(sums * 128).mul_(step / 256)
    return result
