"""Kernels of max pooling of images."""

import ctypes
from ctypes import c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

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
    call = _Pooling(
        x.data_ptr(), out.data_ptr(), index.data_ptr(), x.shape[0] * x.shape[1], *x.shape[2:],
        *shape[2:], *(n for size in sizes for n in size),
    )  # fmt: skip
    return None if library.max_pool(ctypes.byref(call), torch.get_num_threads()) else (out, index)


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
