"""Kernels of matrix products."""

import ctypes
from ctypes import c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

from exact.bytes import signed_bytes
from exact.kernels.registry import is_float, is_plain, kernel
from exact.kernels.shared_library import library
from exact.products import product_bits

__all__ = ["multiply"]


class _Product(ctypes.Structure):
    _fields_ = (
        ("a", c_void_p), ("b", c_void_p), ("n", c_long), ("k", c_long), ("m", c_long),
        ("sa_n", c_long), ("sa_k", c_long), ("sb_k", c_long), ("sb_m", c_long),
        ("a_bits", c_long), ("b_bits", c_long),
        ("bias", c_void_p), ("bias_n", c_long), ("bias_m", c_long),
        ("out", c_void_p), ("so_n", c_long), ("so_m", c_long),
        ("wide", c_long), ("batch", c_long), ("sa_b", c_long), ("sb_b", c_long), ("so_b", c_long),
        ("a_blocks", c_void_p), ("b_blocks", c_void_p), ("steps", c_void_p),
        ("row", c_long), ("pair", c_long), ("low", c_long), ("failed", c_long),
    )  # fmt: skip


@kernel("mm")
def _mm(library: Any, a: Tensor, b: Tensor) -> Tensor | None:
    return _product(library, a, b, None)


@kernel("addmm")
def _addmm(library: Any, bias: Tensor, a: Tensor, b: Tensor, **factors: float) -> Tensor | None:
    plain = bias.dim() == 1 and bias.shape[0] == b.shape[-1] and is_plain(bias)
    return _product(library, a, b, bias) if plain and not factors else None


def _product(library: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor | None:
    if not (a.dim() == b.dim() == 2 and is_float(a, b) and a.numel() and b.numel()):
        return None
    (n, k), m = a.shape, b.shape[1]
    if b.shape[0] != k:
        return None
    out = torch.empty((n, m))
    bits = product_bits(k)
    bias_data = None if bias is None else bias.data_ptr()
    a_bytes, b_bytes = signed_bytes(a), signed_bytes(b)
    multiply = library.float_product if a_bytes is b_bytes is None else library.byte_product
    if a_bytes is None:
        right = b if b_bytes is None else b_bytes
        product = _Product(
            a.data_ptr(), right.data_ptr(), n, k, m, *a.stride(), *right.stride(), *bits,
            bias_data, 0, 1, out.data_ptr(), m, 1, False, 1,
        )  # fmt: skip
    else:  # bᵀ aᵀ, as bytes come second
        product = _Product(
            b.data_ptr(), a_bytes.data_ptr(), m, k, n, *b.stride()[::-1], *a_bytes.stride()[::-1],
            *bits[::-1], bias_data, 1, 0, out.data_ptr(), 1, m, False, 1,
        )  # fmt: skip
    failed = multiply(ctypes.byref(product), torch.get_num_threads())
    return None if failed else out


def multiply(a: Tensor, b: Tensor) -> Tensor | None:
    """The product of `products.matmul` in float64, of float32 (…, n, k) and (…, k, m).

    None where there is no kernel for it.
    """
    compiled = library()
    if compiled is None or not (is_float(a, b) and a.numel() and b.numel()):
        return None
    if a.shape[-1] != b.shape[-2] or a.dim() < 2 or b.dim() < 2:
        return None
    (n, k), m = a.shape[-2:], b.shape[-1]
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    x = a.expand(*batch, n, k).reshape(-1, n, k)
    y = b.expand(*batch, k, m).reshape(-1, k, m)
    out = torch.empty((*batch, n, m), dtype=torch.float64)
    product = _Product(
        x.data_ptr(), y.data_ptr(), n, k, m, *x.stride()[1:], *y.stride()[1:], *product_bits(k),
        None, 0, 0, out.data_ptr(), m, 1, True, len(x), x.stride()[0], y.stride()[0], n * m,
    )  # fmt: skip
    failed = compiled.float_product(ctypes.byref(product), torch.get_num_threads())
    return None if failed else out
