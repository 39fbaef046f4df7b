"""Convolution of N examples with C channels of 1 to 3 dimensions; O output channels.

Three contractions of the same windows: the output, the gradient of the input and that of the
weights. A transposed convolution is the second, and its gradients are the other two.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exact import grid, products
from exact.registry import implements

__all__ = ["Windows", "expanded", "output_size"]

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Windows(NamedTuple):
    """Which inputs each output is computed from: numbers by dimension, and groups of channels."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int = 1

    @classmethod
    def over(
        cls, dims: int, stride: Any, padding: Any, dilation: Any, groups: int = 1
    ) -> "Windows":
        """Windows of this many dimensions, where one number may stand for all."""
        stride, padding, dilation = (expanded(sizes, dims) for sizes in (stride, padding, dilation))
        return cls(stride, padding, dilation, groups)

    def overlap(self, size: list[int]) -> bool:
        """Whether windows of this size may share an input."""
        pairs = zip(size, self.stride, strict=True)
        return any(d != 1 for d in self.dilation) or any(s < k for k, s in pairs)


@implements("convolution")
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """(N, C, …), (O, C/groups, …) to (N, O, …); transposed weights are (C, O/groups, …)."""
    dims = x.dim() - 2
    windows = Windows.over(dims, stride, padding, dilation, groups)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    if x.dtype != weight.dtype or (bias is not None and bias.shape != (outputs,)):
        raise RuntimeError(f"expected weights of {x.dtype} and a bias for each output")
    if transposed:
        each = zip(*windows[:3], expanded(output_padding, dims), strict=True)
        size = [
            (n - 1) * s - 2 * p + d * (k - 1) + more + 1
            for n, k, (s, p, d, more) in zip(x.shape[2:], weight.shape[2:], each, strict=True)
        ]
        return _input_gradient(x, size, weight, bias, windows)
    return _forward(x, weight, bias, windows)


@implements("convolution_backward")
def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> _Gradients:
    windows = Windows.over(x.dim() - 2, stride, padding, dilation, groups)
    x_grad = weight_grad = bias_grad = None
    if mask[0] and transposed:
        x_grad = _cropped(_forward(grad, weight, None, windows), x)
    elif mask[0]:
        x_grad = _input_gradient(grad, x.shape[2:], weight, None, windows)
    if mask[1]:
        outer, inner = (x, grad) if transposed else (grad, x)
        weight_grad, bias_grad = _weight_gradient(outer, inner, weight, windows)
    if not mask[2]:
        bias_grad = None
    elif transposed or bias_grad is None:
        bias_grad = grid.sum(grad, [0, *range(2, grad.dim())]).to(x.dtype)
    return x_grad, weight_grad, bias_grad


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    """Weights times the gathered patches, plus the bias."""
    size = output_size(x.shape[2:], weight.shape[2:], windows)
    if kernels := products.compiled():
        found = kernels.convolve(x, weight, bias, windows, size)
        if found is not None:
            return found
    shape = (windows.groups, len(weight) // windows.groups, weight[0].numel())
    y = products.matmul(weight.reshape(shape), _patches(x, weight.shape[2:], windows))
    y = y.reshape(len(x), weight.shape[0], *size)
    return (y if bias is None else y + bias.view(-1, *[1] * len(size))).to(x.dtype)


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, windows: Windows
) -> tuple[Tensor, Tensor | None]:
    """The gradient times the patches, over examples and places; of the bias, if that is known."""
    if (kernels := products.compiled()) and (
        found := kernels.convolve_gradients(grad, x, weight, windows)
    ):
        return found
    patches = _patches(x, weight.shape[2:], windows)  # (N, G, K, L)
    patches = patches.unflatten(-1, output_size(x.shape[2:], weight.shape[2:], windows))
    patches = _cropped(patches, grad).flatten(3)
    g = grad.reshape(len(x), windows.groups, len(weight) // windows.groups, patches.shape[-1])
    g = g.permute(1, 2, 0, 3).flatten(2)  # (G, O/G, N · L)
    rows = patches.permute(1, 2, 0, 3).flatten(2)  # (G, K, N · L)
    product = products.matmul(g, rows.mT)  # (G, O/G, K)
    return product.view(weight.shape).to(x.dtype), None


def _input_gradient(
    grad: Tensor, size: Any, weight: Tensor, bias: Tensor | None, windows: Windows
) -> Tensor:
    """The convolution of the gradient, with gaps of the stride, and the rotated weights."""
    stride, padding, dilation, groups = windows
    outputs, kernel, dims = weight.shape[0], weight.shape[2:], len(stride)
    spread = grad
    if any(s > 1 for s in stride):
        sizes = ((m - 1) * s + 1 for m, s in zip(grad.shape[2:], stride, strict=True))
        spread = grad.new_zeros(*grad.shape[:2], *sizes)
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = grad
    margins = []  # cut or filled so that the result has the size of x
    for i in reversed(range(dims)):  # F.pad starts with the last dimension
        before = dilation[i] * (kernel[i] - 1) - padding[i]
        after = size[i] + dilation[i] * (kernel[i] - 1) - before - spread.shape[2 + i]
        margins += [before, after]
    rotated = weight.flip(list(range(2, 2 + dims)))
    rotated = rotated.reshape(groups, outputs // groups, weight.shape[1], *kernel)
    rotated = rotated.transpose(1, 2).reshape(-1, outputs // groups, *kernel)
    dense = Windows([1] * dims, [0] * dims, dilation, groups)
    return _forward(F.pad(spread, margins), rotated, bias, dense)


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    """X without the places beyond `like`, which output padding adds."""
    for dim, n in enumerate(like.shape[2:], start=2 - like.dim()):
        x = x.narrow(dim, 0, n)
    return x


def expanded(sizes: Any, dims: int) -> list[int]:
    """A size for each dimension; PyTorch may give one number for all."""
    listed: list[int] = [sizes] if isinstance(sizes, int) else list(sizes)
    return listed * dims if len(listed) == 1 else listed


def output_size(size: Any, kernel: Any, windows: Windows) -> tuple[int, ...]:
    """The size of a convolution's outputs, (…), for inputs of the size (…)."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, *windows[:3], strict=True)
    )


def _patches(x: Tensor, kernel: Any, windows: Windows) -> Tensor:
    """The inputs of each output: (N, groups, C/groups · kernel, L)."""
    stride, padding, dilation, groups = windows
    if len(kernel) == 1:  # an image of one row
        x, kernel = x.unsqueeze(2), (1, *kernel)
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    if len(kernel) == 2:
        columns = F.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    else:
        margins = [p for size in reversed(padding) for p in (size, size)]
        x = F.pad(x, margins)
        parts = []
        for corner in itertools.product(*map(range, kernel)):
            part = x
            for i, (first, k, s, d) in enumerate(
                zip(corner, kernel, stride, dilation, strict=True), start=2
            ):
                length = x.shape[i] - d * (k - 1)
                part = part.narrow(i, first * d, length)
                part = part.index_select(i, torch.arange(0, length, s, device=x.device))
            parts.append(part.flatten(2))
        columns = torch.stack(parts, 2).flatten(1, 2)
    return columns.reshape(len(x), groups, columns.shape[1] // groups, columns.shape[2])
