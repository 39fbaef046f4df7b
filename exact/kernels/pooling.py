"""Kernels of max and average pooling of images."""

import ctypes
import math
from ctypes import c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

from exact import grid
from exact.kernels.registry import is_plain, kernel
from exact.operations.convolution import expanded, output_size


class _Pooling(ctypes.Structure):
    _fields_ = (
        ("x", c_void_p), ("out", c_void_p), ("index", c_void_p), ("planes", c_long),
        ("height", c_long), ("width", c_long), ("out_height", c_long), ("out_width", c_long),
        ("kernel_y", c_long), ("kernel_x", c_long), ("stride_y", c_long), ("stride_x", c_long),
        ("padding_y", c_long), ("padding_x", c_long), ("dilation_y", c_long),
        ("dilation_x", c_long),
    )  # fmt: skip


@kernel("max_pool2d_with_indices")
def _max_pool(
    library: Any, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil: bool = False,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    if ceil or x.dim() != 4 or not is_plain(x):
        return None
    sizes = [expanded(size, 2) for size in (kernel, stride or kernel, padding, dilation)]
    shape = x.shape[:2] + output_size(x.shape[2:], *sizes)
    if not all(shape) or any(2 * p > k for k, p in zip(sizes[0], sizes[2], strict=True)):
        return None
    out, index = torch.empty(shape), torch.empty(shape, dtype=torch.int64)
    call = _call(x.shape, shape, *sizes)
    call.x, call.out, call.index = x.data_ptr(), out.data_ptr(), index.data_ptr()
    return None if library.max_pool(ctypes.byref(call), torch.get_num_threads()) else (out, index)


def _call(x: torch.Size, out: torch.Size, *sizes: list[int]) -> _Pooling:
    """What a kernel is told of inputs, outputs, and of kernel, stride, padding and dilation."""
    numbers = (n for size in sizes for n in size)
    return _Pooling(None, None, None, x[0] * x[1], *x[2:], *out[2:], *numbers)


@kernel("avg_pool2d")
def _average_pool(
    library: Any, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False,
    count_padding: bool = True, divisor: int | None = None,
) -> Tensor | None:  # fmt: skip
    if ceil or x.dim() != 4 or not is_plain(x) or any(expanded(padding, 2)):
        return None
    sizes = [expanded(size, 2) for size in (kernel, stride or kernel, 0, 1)]
    shape = x.shape[:2] + output_size(x.shape[2:], *sizes)
    if not all(shape):
        return None
    out, call, terms = torch.empty(shape), _call(x.shape, shape, *sizes), math.prod(sizes[0])
    call.x, call.out = x.data_ptr(), out.data_ptr()
    failed = library.average_pool(ctypes.byref(call), grid.sum_bits(terms), divisor or terms)
    return None if failed else out


@kernel("avg_pool2d_backward")
def _average_pool_backward(
    library: Any, grad: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil: bool,
    count_padding: bool, divisor: int | None,
) -> Tensor | None:  # fmt: skip
    sizes = [expanded(size, 2) for size in (kernel, stride or kernel, 0, 1)]
    overlap = any(s < k for k, s in zip(*sizes[:2], strict=True))
    if overlap or ceil or x.dim() != 4 or any(expanded(padding, 2)) or not is_plain(grad, x):
        return None
    out, call = torch.empty(x.shape), _call(x.shape, grad.shape, *sizes)
    call.x, call.out = grad.data_ptr(), out.data_ptr()
    library.average_pool_backward(ctypes.byref(call), divisor or math.prod(sizes[0]))
    return out


@kernel("max_pool2d_with_indices_backward")
def _max_pool_backward(
    library: Any, grad: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any,
    ceil: bool, indices: Tensor,
) -> Tensor | None:  # fmt: skip
    kernel, stride, dilation = (expanded(z, 2) for z in (kernel, stride or kernel, dilation))
    overlap = dilation != [1, 1] or any(s < k for s, k in zip(stride, kernel, strict=True))
    if overlap or x.dim() != 4 or not (is_plain(grad, x) and indices.is_contiguous()):
        return None
    out = torch.empty(x.shape)
    planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    pointers = grad.data_ptr(), indices.data_ptr()
    failed = library.max_pool_backward(
        *pointers, planes, grad.numel() // planes, size, out.data_ptr()
    )
    return None if failed else out
