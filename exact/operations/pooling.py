"""Max pooling of images (N, C, H, W)."""

from typing import Any

from torch import Tensor

from exact.operations.indexing import scatter_add
from exact.registry import exact_as_is, implements

exact_as_is("max_pool2d_with_indices")


@implements("max_pool2d_with_indices_backward")
def _max_pool2d_backward(
    grad: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool,
    indices: Tensor,
) -> Tensor:  # fmt: skip
    # Windows may overlap, so that several gradients meet in one pixel.
    flat = x.new_zeros(x.shape).flatten(-2)
    return scatter_add(flat, -1, indices.flatten(-2), grad.flatten(-2)).view(x.shape)
