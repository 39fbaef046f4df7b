"""Convolution of images: N examples, C channels, H × W pixels; O output channels, L of H' · W'."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from exact import grid, products
from exact.errors import NotExactError
from exact.registry import implements


@implements("convolution")
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Gathered patches times weights: (N, C, H, W), (O, C/groups, h, w) to (N, O, H', W')."""
    _require_2d(x, transposed)
    stride, padding, dilation = _pairs(stride, padding, dilation)
    if x.dtype != weight.dtype or (bias is not None and bias.shape != weight.shape[:1]):
        raise RuntimeError(f"expected weights of {x.dtype} and a bias for each output")
    patches = _patches(x, weight.shape[2:], stride, padding, dilation, groups)
    y = products.matmul(weight.reshape(groups, len(weight) // groups, weight[0].numel()), patches)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    y = y.reshape(len(x), weight.shape[0], *size)
    return (y if bias is None else y + bias.view(-1, 1, 1)).to(x.dtype)


@implements("convolution_backward")
def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int, mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    _require_2d(x, transposed)
    stride, padding, dilation = _pairs(stride, padding, dilation)
    x_grad = weight_grad = bias_grad = None
    if mask[0]:
        x_grad = _input_gradient(grad, x, weight, stride, padding, dilation, groups)
    if mask[1]:
        patches = _patches(x, weight.shape[2:], stride, padding, dilation, groups)  # (N, G, K, L)
        g = grad.reshape(len(x), groups, len(weight) // groups, patches.shape[-1])
        g = g.permute(1, 2, 0, 3).flatten(2)  # (G, O/G, N · L)
        product = products.matmul(g, patches.permute(1, 0, 3, 2).flatten(1, 2))  # (G, O/G, K)
        weight_grad = product.view(weight.shape).to(x.dtype)
    if mask[2]:
        bias_grad = grid.sum(grad, [0, 2, 3]).to(x.dtype)
    return x_grad, weight_grad, bias_grad


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The convolution of the gradient, with gaps of the stride, and the rotated weights."""
    outputs, kernel = weight.shape[0], weight.shape[2:]
    spread = grad.new_zeros(
        *grad.shape[:2], *((m - 1) * s + 1 for m, s in zip(grad.shape[2:], stride, strict=True))
    )
    spread[:, :, :: stride[0], :: stride[1]] = grad
    margins = []  # cut or filled so that the result has the size of x
    for i in (1, 0):  # F.pad starts with the last dimension
        before = dilation[i] * (kernel[i] - 1) - padding[i]
        after = x.shape[2 + i] + dilation[i] * (kernel[i] - 1) - before - spread.shape[2 + i]
        margins += [before, after]
    rotated = weight.flip(2, 3).reshape(groups, outputs // groups, -1, *kernel)
    rotated = rotated.transpose(1, 2).reshape(-1, outputs // groups, *kernel)
    one, none = [1, 1], [0, 0]
    return _convolution(
        F.pad(spread, margins), rotated, None, one, none, dilation, False, none, groups
    )


def _pairs(*sizes: list[int]) -> list[list[int]]:
    """Sizes for height and width; PyTorch may give one number for both."""
    return [size * 2 if len(size) == 1 else size for size in sizes]


def _require_2d(x: Tensor, transposed: bool) -> None:
    if x.dim() != 4 or transposed:
        kind = "transposed" if transposed else f"{x.dim() - 2}-d"
        raise NotExactError(f"{kind} convolution has no exact implementation: 2-d convolution has")


def _patches(
    x: Tensor, kernel: Any, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """The inputs of each output pixel: (N, groups, C/groups · h · w, L)."""
    columns = F.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    return columns.reshape(len(x), groups, columns.shape[1] // groups, columns.shape[2])
