"""Pooling of sequences, images and volumes: (N, C, …) or (C, …).

Each is a gather of windows and a reduction of them. `_windows` says which inputs the window of
an output has; the reduction is a mean or a maximum, and the gradient goes back by a sum at the
same indices.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import grid
from exact.operations.convolution import Windows, expanded
from exact.operations.indexing import scatter_add, scatter_last
from exact.registry import exact_as_is, implements

exact_as_is("""
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d
""")


def _scatter_to_maxima(grad: Tensor, x: Tensor, indices: Tensor, dims: int) -> Tensor:
    # Windows may overlap, so that several gradients meet in one pixel.
    flat = x.new_zeros(x.shape).flatten(-dims)
    return scatter_add(flat, -1, indices.flatten(-dims), grad.flatten(-dims)).view(x.shape)


@implements("max_pool2d_with_indices_backward")
def _max_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil: bool,
    indices: Tensor,
) -> Tensor:
    windows = Windows.over(2, stride or kernel, padding, dilation)
    if not windows.overlap(expanded(kernel, 2)):
        flat = x.new_zeros(x.shape).flatten(-2)  # windows that do not overlap need no sums
        return flat.scatter_(-1, indices.flatten(-2), grad.flatten(-2)).add_(0.0).view(x.shape)
    return _scatter_to_maxima(grad, x, indices, 2)


@implements("max_pool3d_with_indices_backward")
def _max_pool3d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil: bool,
    indices: Tensor,
) -> Tensor:
    return _scatter_to_maxima(grad, x, indices, 3)


@implements("adaptive_max_pool2d_backward")
def _adaptive_max_pool2d_backward(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return _scatter_to_maxima(grad, x, indices, 2)


@implements("adaptive_max_pool3d_backward")
def _adaptive_max_pool3d_backward(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return _scatter_to_maxima(grad, x, indices, 3)


@implements("max_unpool2d")
def _max_unpool2d(x: Tensor, indices: Tensor, size: list[int]) -> Tensor:
    return _unpool(x, indices, size)


@implements("max_unpool3d")
def _max_unpool3d(
    x: Tensor, indices: Tensor, size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    return _unpool(x, indices, size)


def _unpool(x: Tensor, indices: Tensor, size: list[int]) -> Tensor:
    dims = len(size)
    shape = [*x.shape[:-dims], *size]
    flat = x.new_zeros(shape).flatten(-dims)
    return scatter_last(flat, -1, indices.flatten(-dims), x.flatten(-dims)).view(shape)


_Span = tuple[int, int]  # the first input of a window and the one after its last


def _windows(size: list[int], spans: list[list[_Span]], device: torch.device) -> Tensor:
    """The flat indices of the inputs of each output (L, K): prod(size) where there are fewer.

    `spans` has for each dimension the window of each output.
    """
    index = torch.zeros((1, 1), dtype=torch.int64, device=device)
    for n, windows in zip(size, spans, strict=True):
        longest = max((end - start for start, end in windows), default=0)
        starts = torch.tensor([start for start, _ in windows], device=device).view(-1, 1)
        ends = torch.tensor([end for _, end in windows], device=device).view(-1, 1)
        along = starts + torch.arange(longest, device=device)
        along = torch.where(along < ends, along, -1)
        outer, inner = index[:, None, :, None], along[None, :, None, :]
        index = torch.where((outer < 0) | (inner < 0), -1, outer * n + inner)
        index = index.flatten(2).flatten(0, 1)
    return torch.where(index < 0, math.prod(size), index)


def _mean(x: Tensor, spans: list[list[_Span]], counts: list[int]) -> Tensor:
    """The sum of each window, divided by its count."""
    grid.require_floating_point(x)
    dims = len(spans)
    index = _windows(list(x.shape[-dims:]), spans, x.device)
    flat = x.flatten(-dims)
    flat = torch.cat([flat, flat.new_zeros(*flat.shape[:-1], 1)], -1)
    sums = grid.sum(flat[..., index], [-1])
    means = sums / torch.tensor(counts, dtype=torch.float64, device=x.device)
    return means.to(x.dtype).view(*x.shape[:-dims], *map(len, spans))


def _mean_backward(grad: Tensor, x: Tensor, spans: list[list[_Span]], counts: list[int]) -> Tensor:
    dims = len(spans)
    index = _windows(list(x.shape[-dims:]), spans, x.device)
    g = grad.flatten(-dims).double()
    g = g / torch.tensor(counts, dtype=torch.float64, device=x.device)
    n = x[(0,) * (x.dim() - dims)].numel() if x.numel() else 0
    flat = g.new_zeros(*x.shape[:-dims], n + 1)
    index, g = (z.expand(*g.shape, index.shape[-1]).flatten(-2) for z in (index, g.unsqueeze(-1)))
    return scatter_add(flat, -1, index, g)[..., :n].to(x.dtype).reshape(x.shape)


def _average_spans(
    x: Tensor,
    dims: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil: bool,
    include_padding: bool,
    divisor: int | None,
) -> tuple[list[list[_Span]], list[int]]:
    """The windows of average pooling, and by what each sum is divided."""
    kernel = expanded(kernel, dims)
    stride, padding = expanded(stride or kernel, dims), expanded(padding, dims)
    spans, lengths = [], []
    for n, k, s, p in zip(x.shape[-dims:], kernel, stride, padding, strict=True):
        outputs = -(-(n + 2 * p - k) // s) + 1 if ceil else (n + 2 * p - k) // s + 1
        if ceil and (outputs - 1) * s >= n + p:
            outputs -= 1  # the last window must not begin beyond the padding
        starts = [i * s - p for i in range(outputs)]
        spans.append([(max(i, 0), min(i + k, n)) for i in starts])
        padded = [min(i + k, n + p) - i for i in starts]
        lengths.append(padded if include_padding else [end - start for start, end in spans[-1]])
    counts = [math.prod(sizes) for sizes in itertools.product(*lengths)]
    return spans, [divisor] * len(counts) if divisor else counts


def _adaptive_spans(x: Tensor, outputs: Any) -> tuple[list[list[_Span]], list[int]]:
    outputs = list(outputs)
    spans = [
        [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        for n, m in zip(x.shape[-len(outputs) :], outputs, strict=True)
    ]
    lengths = [[end - start for start, end in windows] for windows in spans]
    return spans, [math.prod(sizes) for sizes in itertools.product(*lengths)]


def _average_pools(dims: int) -> tuple[Callable[..., Tensor], ...]:
    """Average and adaptive average pooling in so many dimensions, and their gradients."""

    def pool(
        x: Tensor,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        options = (kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return _mean(x, *_average_spans(x, dims, *options))

    def backward(grad: Tensor, x: Tensor, *options: Any) -> Tensor:
        return _mean_backward(grad, x, *_average_spans(x, dims, *options))

    def adaptive(x: Tensor, outputs: Any) -> Tensor:
        return _mean(x, *_adaptive_spans(x, outputs))

    def adaptive_backward(grad: Tensor, x: Tensor) -> Tensor:
        return _mean_backward(grad, x, *_adaptive_spans(x, grad.shape[-dims:]))

    return pool, backward, adaptive, adaptive_backward


for n in (2, 3):
    adaptive = "_adaptive_avg_pool{}d", "_adaptive_avg_pool{}d_backward"
    names = ("avg_pool{}d", "avg_pool{}d_backward", *adaptive)
    for name, function in zip(names, _average_pools(n), strict=True):
        implements(name.format(n))(function)
