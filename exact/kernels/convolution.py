"""Kernels of convolutions of one and two dimensions."""

import ctypes
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from exact import grid, products
from exact.kernels.registry import is_float
from exact.kernels.shared_library import fields, library
from exact.operations.convolution import Windows

__all__ = ["convolve", "convolve_gradients"]

_LARGEST = 2**31  # numbers of images, as a kernel counts by 32 bits


class _Convolution(ctypes.Structure):
    _fields_ = fields(
        "x* weight* grad* bias* out* bias_grad* taps* images groups channels outputs k height width"
        " image group plane step_y step_x a_bits b_bits sum_bits largest* weights* a_shifts*"
        " b_shifts* parts* next failed"
    )


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, size: tuple[int, ...]
) -> Tensor | None:
    """The convolution of x (N, C, …) and the weights (O, C/groups, …): (N, O, *size).

    None where there is no kernel for it.
    """
    compiled = library()
    if compiled is None or not _is_supported(x, weight, *([] if bias is None else [bias])):
        return None
    x = _padded(x, windows.padding)
    if x.numel() >= _LARGEST:
        return None
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    out = x.new_empty(len(x), len(weight), *size)
    call = _call(x, weight.shape, windows, size, terms=weight[0].numel())
    call.weight, call.out = weight.data_ptr(), out.data_ptr()
    call.bias = None if bias is None else bias.data_ptr()
    return None if compiled.convolve(ctypes.byref(call), torch.get_num_threads()) else out


def convolve_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, windows: Windows
) -> tuple[Tensor, Tensor] | None:
    """The gradients of the weights and of the bias, from that of the outputs (N, O, …).

    None where there is no kernel for them.
    """
    compiled = library()
    if compiled is None or not _is_supported(grad, x, weight):
        return None
    x, grad = _padded(x, windows.padding), grad.contiguous()
    if max(x.numel(), grad.numel()) >= _LARGEST:
        return None
    out, bias_grad = torch.empty(weight.shape), torch.empty(len(weight))
    terms = grad.numel() // grad.shape[1]
    call = _call(x, weight.shape, windows, grad.shape[2:], terms)
    call.grad, call.out, call.bias_grad = grad.data_ptr(), out.data_ptr(), bias_grad.data_ptr()
    failed = compiled.convolve_gradients(ctypes.byref(call), torch.get_num_threads())
    return None if failed else (out, bias_grad)


def _is_supported(*tensors: Tensor) -> bool:
    return is_float(*tensors) and tensors[0].dim() in (3, 4) and all(x.numel() for x in tensors)


def _padded(x: Tensor, padding: list[int]) -> Tensor:
    margins = [p for size in reversed(padding) for p in (size, size)]
    return (F.pad(x, margins) if any(margins) else x).contiguous()


def _call(
    x: Tensor, weight: torch.Size, windows: Windows, size: tuple[int, ...], terms: int
) -> _Convolution:
    """What both kernels are told, of images that are padded. One dimension is a row of pixels."""
    rows, columns = (1, *x.shape[2:])[-2:]
    stride, _, dilation, groups = windows
    taps = _taps(weight[1], (1, *weight[2:])[-2:], (1, *dilation)[-2:], rows, columns)
    call = _Convolution(x=x.data_ptr(), taps=taps.data_ptr(), k=len(taps))
    call.images, call.groups = len(x), groups
    call.channels, call.outputs = weight[1], weight[0] // groups
    call.height, call.width = (1, *size)[-2:]
    call.plane = rows * columns
    call.image, call.group = x.stride(0), call.channels * call.plane
    call.step_y, call.step_x = (1, *stride)[-2] * columns, stride[-1]
    call.a_bits, call.b_bits = products.product_bits(terms)
    call.sum_bits = grid.sum_bits(terms)
    return call


@functools.lru_cache(maxsize=256)
def _taps(
    channels: int, kernel: tuple[int, int], dilation: tuple[int, int], rows: int, columns: int
) -> Tensor:
    """Where the inputs of an output are, from the first one: int32 (channels · kernel)."""
    c, i, j = (torch.arange(n, dtype=torch.int32) for n in (channels, *kernel))
    place = c[:, None, None] * rows + i[:, None] * dilation[0]
    return (place * columns + j * dilation[1]).flatten()
