"""Kernels of matrix products."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from exact.bytes import signed_bytes
from exact.kernels.registry import KernelCall, is_float, is_plain, kernel
from exact.kernels.shared_library import fields, library
from exact.products import product_bits

__all__ = ["multiply"]


class _Product(ctypes.Structure):
    _fields_ = fields(
        "a* b* n k m sa_n sa_k sb_k sb_m a_bits b_bits bias* bias_n bias_m out* so_n so_m"
        " wide batch sa_b sb_b so_b a_blocks* b_blocks* steps* row pair low failed"
    )


@kernel("mm")
def _mm(library: Any, a: Tensor, b: Tensor) -> KernelCall | None:
    return _product(library, a, b, None)


@kernel("addmm")
def _addmm(library: Any, bias: Tensor, a: Tensor, b: Tensor, **factors: float) -> KernelCall | None:
    plain = bias.dim() == 1 and bias.shape[0] == b.shape[-1] and is_plain(bias)
    return _product(library, a, b, bias) if plain and not factors else None


def _product(library: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> KernelCall | None:
    if not (a.dim() == b.dim() == 2 and is_float(a, b) and a.numel() and b.numel()):
        return None
    (n, k), m = a.shape, b.shape[1]
    if b.shape[0] != k:
        return None
    out = torch.empty((n, m))
    bits = product_bits(k)
    a_bytes, b_bytes = signed_bytes(a), signed_bytes(b)
    if a_bytes is None:
        product = _call(a, b if b_bytes is None else b_bytes, out, bits)
        product.bias_m = 1
    else:  # bᵀ aᵀ, as bytes come second
        product = _call(b.t(), a_bytes.t(), out.t(), bits[::-1])
        product.bias_n = 1
    product.bias = None if bias is None else bias.data_ptr()
    multiply = library.float_product if a_bytes is b_bytes is None else library.byte_product
    # Kept: transposed bytes, which may be new ones, and the structure.
    kept = product, a_bytes, b_bytes
    marked = a if a_bytes is not None else b if b_bytes is not None else None
    arguments = ctypes.addressof(product), torch.get_num_threads()
    return KernelCall(multiply, arguments, out, kept, marked)


def _call(a: Tensor, b: Tensor, out: Tensor, bits: tuple[int, int]) -> _Product:
    """What a kernel is told of matrices (n, k) and (k, m), and their product."""
    product = _Product(a=a.data_ptr(), b=b.data_ptr(), out=out.data_ptr(), batch=1)
    (product.n, product.k), product.m = a.shape, b.shape[1]
    product.sa_n, product.sa_k = a.stride()
    product.sb_k, product.sb_m = b.stride()
    product.so_n, product.so_m = out.stride()
    product.a_bits, product.b_bits = bits
    return product


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
    product = _call(x[0], y[0], out.view(-1, n, m)[0], product_bits(k))
    product.wide, product.batch = True, len(x)
    product.sa_b, product.sb_b, product.so_b = x.stride(0), y.stride(0), n * m
    failed = compiled.float_product(ctypes.byref(product), torch.get_num_threads())
    return None if failed else out
