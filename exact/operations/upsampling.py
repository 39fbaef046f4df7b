"""Upsampling and downsampling by interpolation along each dimension in turn: (N, C, …).

An output is a weighted sum of one, two or four inputs along a dimension, in a fixed order. The
gradient goes back by a sum at the same indices.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import grid
from exact.registry import implements

_Taps = tuple[Tensor, Tensor]  # the indices and the weights of each output's inputs: (K, outputs)


def _positions(n: int, outputs: int, align: bool, scale: float | None) -> Tensor:
    """Where the outputs lie among the inputs, in float64."""
    i = torch.arange(outputs, device="cpu").double()
    if align:
        return i * ((n - 1) / (outputs - 1) if outputs > 1 else 0.0)
    return (i + 0.5) * (1 / scale if scale else n / outputs) - 0.5


def _linear(n: int, outputs: int, align: bool, scale: float | None) -> _Taps:
    x = _positions(n, outputs, align, scale).clamp(min=0)
    low = x.floor().clamp(max=n - 1)
    index = torch.stack([low, (low + 1).clamp(max=n - 1)]).long()
    w = (x - low).clamp(max=1)
    return index, torch.stack([1 - w, w])


def _cubic(n: int, outputs: int, align: bool, scale: float | None) -> _Taps:
    """Keys' convolution with the coefficient -3/4."""
    x = _positions(n, outputs, align, scale)
    low = x.floor()
    t, a = x - low, -0.75

    def near(d: Tensor) -> Tensor:
        return ((d * (a + 2) - (a + 3)) * d) * d + 1

    def far(d: Tensor) -> Tensor:
        return ((d * a - 5 * a) * d + 8 * a) * d - 4 * a

    index = torch.stack([(low + k).clamp(0, n - 1) for k in (-1, 0, 1, 2)]).long()
    return index, torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])


def _nearest(n: int, outputs: int, exact: bool, scale: float | None) -> _Taps:
    ratio = 1 / scale if scale else n / outputs
    i = torch.arange(outputs, device="cpu").double()
    x = ((i + 0.5) if exact else i) * ratio
    index = x.floor().clamp(max=n - 1).long().unsqueeze(0)
    return index, torch.ones(index.shape, dtype=torch.float64)


def _interpolated(x: Tensor, taps: list[_Taps]) -> Tensor:
    grid.require_floating_point(x)
    y = x.double()
    for dim, (index, weights) in enumerate(taps, start=2):
        shape = [-1 if i == dim else 1 for i in range(x.dim())]
        parts = [
            y.index_select(dim, row.to(x.device)) * weight.view(shape).to(x.device)
            for row, weight in zip(index, weights, strict=True)
        ]
        y = parts[0]
        for part in parts[1:]:
            y = y + part
    return y.to(x.dtype)


def _interpolated_backward(grad: Tensor, shape: Any, taps: list[_Taps]) -> Tensor:
    g = grad.double()
    for dim, (index, weights) in reversed(list(enumerate(taps, start=2))):
        moved = g.movedim(dim, -1)  # (…, outputs)
        source = torch.cat([moved * w.to(g.device) for w in weights], -1)
        lead, n = source.shape[:-1], shape[dim]
        rows = torch.arange(lead.numel(), device=g.device).unsqueeze(-1)
        segments = (rows * n + index.flatten().to(g.device)).flatten()
        sums = grid.segment_sum(source.flatten(), segments, lead.numel() * n)
        g = sums.view(*lead, n).movedim(-1, dim)
    return g.to(grad.dtype)


def _pair(
    kind: Callable[[int, int, bool, float | None], _Taps], dims: int, aligned: bool | None
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The operation and its backward; `aligned` where it is no argument."""

    def split(options: tuple[Any, ...]) -> tuple[bool, list[Any]]:
        align = options[0] if aligned is None else aligned
        scales = list(options[1:] if aligned is None else options)
        return align, scales or [None] * dims

    def taps(sizes: Any, outputs: Any, options: tuple[Any, ...]) -> list[_Taps]:
        align, scales = split(options)
        rows = zip(sizes, outputs, scales, strict=True)
        return [kind(n, m, align, scale) for n, m, scale in rows]

    def forward(x: Tensor, size: Any, *options: Any) -> Tensor:
        return _interpolated(x, taps(x.shape[2:], size, options))

    def backward(grad: Tensor, size: Any, shape: Any, *options: Any) -> Tensor:
        return _interpolated_backward(grad, shape, taps(shape[2:], size, options))

    return forward, backward


for name, kind, dims, aligned in (
    ("upsample_linear1d", _linear, 1, None),
    ("upsample_bilinear2d", _linear, 2, None),
    ("upsample_trilinear3d", _linear, 3, None),
    ("upsample_bicubic2d", _cubic, 2, None),
    *((f"upsample_nearest{d}d", _nearest, d, False) for d in (1, 2, 3)),
    *((f"_upsample_nearest_exact{d}d", _nearest, d, True) for d in (1, 2, 3)),
):
    forward, backward = _pair(kind, dims, aligned)
    implements(f"{name}_backward")(backward)
    if "nearest" not in name:  # which PyTorch takes apart to indexing
        implements(name)(forward)
