"""The exact forms of layers: normalisation, GELU, embedding, convolution, pooling.

Signatures are those of the operations below autograd; shapes are named as in
PyTorch's documentation: N examples, C channels, H × W pixels.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exact import functions, grid
from exact.errors import NotExactError
from exact.forms import in_place

__all__ = ["FORMS"]

aten = torch.ops.aten


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and 1/deviation with the normalised dimensions of size 1."""
    grid.require_fractions(x)
    sizes = [list(each.shape) for each in (weight, bias) if each is not None]
    if any(size != list(shape) for size in [list(x.shape[x.dim() - len(shape) :]), *sizes]):
        raise RuntimeError(f"expected numbers of shape (…, {shape}), not {x.shape} with {sizes}")
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = grid.mean(x, dims, keepdim=True)
    centred = x.double() - mean
    variance = grid.mean(centred * centred, dims, keepdim=True)
    rstd = 1 / functions.sqrt(variance + eps)
    y = centred * rstd
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), mean.to(x.dtype), rstd.to(x.dtype)


def _layer_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor,
    weight: Tensor | None, bias: Tensor | None, mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    split = x.dim() - len(shape)
    inner, outer = list(range(split, x.dim())), list(range(split))
    g = grad.double()
    normed = (x.double() - mean) * rstd
    scaled = g if weight is None else g * weight
    along = grid.mean(scaled * normed, inner, keepdim=True)
    towards_mean = grid.mean(scaled, inner, keepdim=True) + normed * along
    x_grad = ((scaled - towards_mean) * rstd).to(x.dtype)
    weight_grad, bias_grad = g * normed, g
    if outer:
        weight_grad, bias_grad = grid.total(weight_grad, outer), grid.total(bias_grad, outer)
    return (
        x_grad if mask[0] else None,
        weight_grad.to(x.dtype) if mask[1] else None,
        bias_grad.to(x.dtype) if mask[2] else None,
    )


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    grid.require_fractions(x)
    y = x.double()
    share = functions.normal_cdf(y) if approximate == "none" else functions.sigmoid(_curve(y))
    return (y * share).to(x.dtype)


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    y = x.double()
    if approximate == "none":
        share = functions.normal_cdf(y)
        slope = functions.exp(y * y * -0.5) * (1 / math.sqrt(2 * math.pi))
    else:
        share = functions.sigmoid(_curve(y))
        slope = share * (1 - share) * ((y * y * (3 * _CUBIC) + 1) * _LINEAR)
    return (grad.double() * (share + y * slope)).to(x.dtype)


# ½ (1 + tanh u) = sigmoid(2u), for u = sqrt(2/π) (x + 0.044715 x³).
_LINEAR, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def _curve(x: Tensor) -> Tensor:
    return (x * x * _CUBIC + 1) * x * _LINEAR


_Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


def _scatter(combine: _Combine, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if not x.dim():
        return combine(x, index, source)
    places, used = _places(x), tuple(slice(n) for n in index.shape)
    others = tuple(slice(None) if i == dim % x.dim() else part for i, part in enumerate(used))
    return combine(x, places[others].gather(dim, index), source[used])


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    source = source if alpha == 1 else source * alpha
    return _accumulate(x, _places(x).index_select(dim, index), source)


def _index_put(
    x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    places = aten.index.Tensor(_places(x), indices)
    return (_accumulate if accumulate else _put)(x, places, values.expand(places.shape))


def _places(x: Tensor) -> Tensor:
    """The number of each place of x, counted row by row."""
    return torch.arange(x.numel(), device=x.device).view(x.shape)


def _put(x: Tensor, places: Tensor, source: Tensor) -> Tensor:
    """X with the numbers in their places, and the last of those that go to the same."""
    _require_match(x, places, source)
    n, items = x.numel(), source.flatten()
    last = torch.arange(n + len(items), device=x.device)
    last = last[:n].scatter_reduce(0, places.flatten(), last[n:], "amax")
    return torch.cat([x.flatten(), items])[last].view(x.shape)


def _require_match(x: Tensor, places: Tensor, source: Tensor) -> None:
    grid.require_same_type(x, source)
    if places.shape != source.shape:
        raise RuntimeError(f"expected numbers of {places.shape}, not {source.shape}")


def _accumulate(x: Tensor, places: Tensor, source: Tensor) -> Tensor:
    """X plus, in each place, the sum of the numbers that go there.

    Each place has a grid of its own, so its sum depends on nothing that goes elsewhere.
    """
    _require_match(x, places, source)
    places, items = places.flatten(), source.flatten()
    if not x.is_floating_point():
        return x.flatten().scatter_add(0, places, items).view(x.shape)
    sums = grid.totals(items, places, x.numel()).view(x.shape)
    return sums.add_(x).to(x.dtype)


def _embedding_backward(
    grad: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool
) -> Tensor:
    if by_frequency:
        raise NotExactError("embedding with scale_grad_by_freq has no exact form")
    columns, places = grad.reshape(-1, grad.shape[-1]), indices.reshape(-1)
    sums = _index_add(grad.new_zeros(rows, grad.shape[-1]), 0, places, columns)
    if padding >= 0:
        sums[padding] = 0
    return sums


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Gathered patches times weights: (N, C, H, W), (O, C/groups, h, w) to (N, O, H', W')."""
    _require_2d(x, transposed)
    if x.dtype != weight.dtype or (bias is not None and bias.shape != weight.shape[:1]):
        raise RuntimeError(f"expected weights of {x.dtype} and a bias for each output")
    patches = _patches(x, weight.shape[2:], stride, padding, dilation, groups)
    y = grid.matmul(weight.reshape(groups, len(weight) // groups, weight[0].numel()), patches)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    y = y.reshape(len(x), weight.shape[0], *size)
    return (y if bias is None else y + bias.view(-1, 1, 1)).to(x.dtype)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int, mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    _require_2d(x, transposed)
    n, outputs, kernel = len(x), weight.shape[0], weight.shape[2:]
    x_grad = weight_grad = bias_grad = None
    if mask[0]:
        # The convolution of the gradient, with gaps of the stride, and the turned weights.
        # Its margins are cut or filled so that it ends with the size of x.
        spread = grad.new_zeros(
            *grad.shape[:2], *((m - 1) * s + 1 for m, s in zip(grad.shape[2:], stride, strict=True))
        )
        spread[:, :, :: stride[0], :: stride[1]] = grad
        margins = []
        for i in (1, 0):  # F.pad starts with the last dimension
            before = dilation[i] * (kernel[i] - 1) - padding[i]
            after = x.shape[2 + i] + dilation[i] * (kernel[i] - 1) - before - spread.shape[2 + i]
            margins += [before, after]
        turned = weight.flip(2, 3).reshape(groups, outputs // groups, -1, *kernel)
        turned = turned.transpose(1, 2).reshape(-1, outputs // groups, *kernel)
        one, none = [1, 1], [0, 0]
        x_grad = _convolution(
            F.pad(spread, margins), turned, None, one, none, dilation, False, none, groups
        )
    if mask[1]:
        patches = _patches(x, kernel, stride, padding, dilation, groups)  # (N, G, K, L)
        g = grad.reshape(n, groups, outputs // groups, patches.shape[-1])
        g = g.permute(1, 2, 0, 3).flatten(2)  # (G, O/G, N · L)
        products = grid.matmul(g, patches.permute(1, 0, 3, 2).flatten(1, 2))  # (G, O/G, K)
        weight_grad = products.view(weight.shape).to(x.dtype)
    if mask[2]:
        bias_grad = grid.total(grad, [0, 2, 3]).to(x.dtype)
    return x_grad, weight_grad, bias_grad


def _require_2d(x: Tensor, transposed: bool) -> None:
    if x.dim() != 4 or transposed:
        kind = "transposed" if transposed else f"{x.dim() - 2}-d"
        raise NotExactError(f"{kind} convolution has no exact form: 2-d convolution has")


def _patches(
    x: Tensor, kernel: Any, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """What each output pixel sees: (N, groups, C/groups · h · w, H' · W')."""
    columns = F.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    return columns.reshape(len(x), groups, columns.shape[1] // groups, columns.shape[2])


def _max_pool2d_backward(
    grad: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool,
    indices: Tensor,
) -> Tensor:  # fmt: skip
    # Windows may overlap, so that several gradients meet in one pixel.
    flat = x.new_zeros(x.shape).flatten(-2)
    return _scatter(_accumulate, flat, -1, indices.flatten(-2), grad.flatten(-2)).view(x.shape)


_scatter_add, _scatter_put = partial(_scatter, _accumulate), partial(_scatter, _put)

FORMS: dict[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_backward,
    aten.scatter_add.default: _scatter_add,
    aten.scatter_add_.default: in_place(_scatter_add),
    aten.scatter.src: _scatter_put,
    aten.scatter_.src: in_place(_scatter_put),
    aten.scatter.value: aten.scatter.value,
    aten.scatter_.value: aten.scatter_.value,
    aten.index_add.default: _index_add,
    aten.index_add_.default: in_place(_index_add),
    aten.index_put.default: _index_put,
    aten.index_put_.default: in_place(_index_put),
    aten._unsafe_index_put.default: _index_put,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices.default: aten.max_pool2d_with_indices.default,
    aten.max_pool2d_with_indices_backward.default: _max_pool2d_backward,
}
