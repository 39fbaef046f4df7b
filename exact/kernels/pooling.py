"""Kernels of max and average pooling of images."""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from exact import grid
from exact.kernels.registry import KernelCall, is_plain, kernel
from exact.kernels.shared_library import fields
from exact.operations.convolution import Windows, expanded, output_size


class _Pooling(ctypes.Structure):
    _fields_ = fields(
        "x* out* index* planes height width out_height out_width kernel_y kernel_x"
        " stride_y stride_x padding_y padding_x dilation_y dilation_x"
    )


@kernel("max_pool2d_with_indices")
def _max_pool(
    library: Any,
    x: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> KernelCall | None:
    if ceil or x.dim() != 4 or not is_plain(x):
        return None
    size = expanded(kernel, 2)
    windows = Windows.over(2, stride or kernel, padding, dilation)
    shape = x.shape[:2] + output_size(x.shape[2:], size, windows)
    if not all(shape) or any(2 * p > k for k, p in zip(size, windows.padding, strict=True)):
        return None
    out, index = torch.empty(shape), torch.empty(shape, dtype=torch.int64)
    call = _call(x.shape, shape, size, windows)
    call.x, call.out, call.index = x.data_ptr(), out.data_ptr(), index.data_ptr()
    return KernelCall(
        library.max_pool, (ctypes.addressof(call), torch.get_num_threads()), (out, index), call
    )


def _call(x: torch.Size, out: torch.Size, size: list[int], windows: Windows) -> _Pooling:
    """What a kernel is told of inputs, outputs and windows."""
    numbers = (n for pair in (size, *windows[:3]) for n in pair)
    return _Pooling(None, None, None, x[0] * x[1], *x[2:], *out[2:], *numbers)


@kernel("avg_pool2d")
def _average_pool(
    library: Any,
    x: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> KernelCall | None:
    if ceil or x.dim() != 4 or not is_plain(x) or any(expanded(padding, 2)):
        return None
    size, windows = expanded(kernel, 2), Windows.over(2, stride or kernel, 0, 1)
    shape = x.shape[:2] + output_size(x.shape[2:], size, windows)
    if not all(shape):
        return None
    out, call, terms = torch.empty(shape), _call(x.shape, shape, size, windows), math.prod(size)
    call.x, call.out = x.data_ptr(), out.data_ptr()
    arguments = ctypes.addressof(call), grid.sum_bits(terms), divisor or terms
    return KernelCall(library.average_pool, arguments, out, call)


@kernel("avg_pool2d_backward")
def _average_pool_backward(
    library: Any,
    grad: Tensor,
    x: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil: bool,
    count_padding: bool,
    divisor: int | None,
) -> KernelCall | None:
    size, windows = expanded(kernel, 2), Windows.over(2, stride or kernel, 0, 1)
    if windows.overlap(size) or ceil or any(expanded(padding, 2)):
        return None
    if x.dim() != 4 or not is_plain(grad, x):
        return None
    out, call = torch.empty(x.shape), _call(x.shape, grad.shape, size, windows)
    call.x, call.out = grad.data_ptr(), out.data_ptr()
    arguments = ctypes.addressof(call), divisor or math.prod(size)
    return KernelCall(library.average_pool_backward, arguments, out, call)


@kernel("max_pool2d_with_indices_backward")
def _max_pool_backward(
    library: Any,
    grad: Tensor,
    x: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil: bool,
    indices: Tensor,
) -> KernelCall | None:
    windows = Windows.over(2, stride or kernel, padding, dilation)
    if (
        windows.overlap(expanded(kernel, 2))
        or x.dim() != 4
        or not (is_plain(grad, x) and indices.is_contiguous())
    ):
        return None
    out = torch.empty(x.shape)
    planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    arguments = grad.data_ptr(), indices.data_ptr(), planes, grad.numel() // planes, size
    return KernelCall(library.max_pool_backward, (*arguments, out.data_ptr()), out)
