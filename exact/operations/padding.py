"""Padding by reflection or repetition, and columns of patches: numbers that are moved.

The gradient of each goes back by a sum at the indices that the numbers came from.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exact import grid
from exact.operations.indexing import scatter_add
from exact.registry import aten, exact_as_is, implements

exact_as_is("""
    reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d im2col
""")


def _moved_back(move: Callable[[Tensor], Tensor], grad: Tensor, shape: Any, dims: int) -> Tensor:
    """The gradient of what `move` moves in the last dimensions of (…, *shape[-dims:])."""
    inner = list(shape[-dims:])
    places = torch.arange(1, inner[0] * max(grad.new_empty(inner[1:]).numel(), 1) + 1).double()
    sources = move(places.view(1, 1, *inner)).long().flatten().to(grad.device)  # 0: from nowhere
    lead = list(shape[:-dims])
    g = grad.reshape(*lead, len(sources))
    flat = grad.new_zeros(*lead, len(places) + 1)
    return scatter_add(flat, -1, sources.expand(g.shape), g)[..., 1:].reshape(shape)


def _pad_backward(mode: str, dims: int) -> Callable[..., Tensor]:
    def backward(grad: Tensor, x: Tensor, padding: Any) -> Tensor:
        return _moved_back(lambda y: F.pad(y, tuple(padding), mode), grad, x.shape, dims)

    return backward


for dims in (1, 2, 3):
    implements(f"reflection_pad{dims}d_backward")(_pad_backward("reflect", dims))
    implements(f"replication_pad{dims}d_backward")(_pad_backward("replicate", dims))


@implements("col2im")
def _col2im(
    columns: Tensor, size: list[int], kernel: Any, dilation: Any, padding: Any, stride: Any
) -> Tensor:
    """The sum of patches (…, C · h · w, L) in the images (…, C, H, W) that they come from."""
    grid.require_floating_point(columns)

    def move(images: Tensor) -> Tensor:
        return aten.im2col.default(images, kernel, dilation, padding, stride)  # type: ignore[no-any-return]

    taps = kernel[0] * kernel[1]
    channels = columns.shape[-2] // taps
    shape = [*columns.shape[:-2], channels, *size]
    return _moved_back(move, columns, shape, 2)
