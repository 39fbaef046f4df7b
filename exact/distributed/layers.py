"""Convolution, normalisation, pooling and embeddings of a batch that is divided."""

import math
from typing import Any

from torch.distributed.tensor import DTensor

from exact.distributed.implementations import implements
from exact.distributed.tensors import (
    Local,
    RefusalError,
    divide,
    dtensors,
    from_part,
    is_divided,
    local_tensor,
    over_all,
)


@implements("convolution")
def _by_example(call: Local, x: DTensor, *args: Any) -> Any:
    """Of N examples, each by itself: (N, …) to (N, …)."""
    _require_examples(x, args)
    result = call(x, *args)
    if isinstance(result, tuple):
        return tuple(from_part(y, x) for y in result)
    return from_part(result, x)


@implements("native_layer_norm")
def _layer_norm(call: Local, x: DTensor, shape: list[int], *args: Any) -> Any:
    if len(shape) == x.dim():
        raise RefusalError("layer normalisation over the examples of several workers is not exact")
    return _by_example(call, x, shape, *args)


def _layer_gradients(call: Local, x: DTensor, terms: int, args: Any, mask: list[bool]) -> Any:
    """The gradients of x, by example, and of weight and bias, sums of so many terms."""
    of_x, *of_parameters = mask
    grads: list[DTensor | None] = [None, None, None]
    if of_x:
        grads[0] = from_part(call(*args, [True, False, False])[0], x)
    if any(of_parameters):
        grads[1:] = over_all(call, x.device_mesh, terms, *args, [False, *of_parameters])[1:]
    return tuple(grads)


@implements("convolution_backward")
def _convolution_backward(
    call: Local, grad: DTensor, x: DTensor, weight: DTensor, *args: Any
) -> Any:
    _require_examples(x, (weight,))
    grad = divide(grad, 0)
    *options, mask = args
    terms = len(x) * math.prod(grad.shape[2:])
    return _layer_gradients(call, x, terms, (grad, x, weight, *options), mask)


@implements("native_layer_norm_backward")
def _layer_norm_backward(
    call: Local,
    grad: DTensor,
    x: DTensor,
    shape: list[int],
    mean: DTensor,
    rstd: DTensor,
    weight: DTensor | None,
    bias: DTensor | None,
    mask: list[bool],
) -> Any:
    _require_examples(x, (weight, bias))
    args = [divide(grad, 0), x, shape, divide(mean, 0), divide(rstd, 0), weight, bias]
    return _layer_gradients(call, x, x.numel() // math.prod(shape), args, mask)


@implements("max_pool3d_with_indices", "adaptive_max_pool3d")
def _needs_an_example(call: Local, x: DTensor, *args: Any) -> Any:
    raise RefusalError("PyTorch's implementation fails on a worker without examples")


@implements("native_group_norm")
def _group_norm(
    call: Local, x: DTensor, weight: DTensor | None, bias: DTensor | None, n: int, *args: Any
) -> Any:
    _require_examples(x, (weight, bias))
    return tuple(from_part(y, x) for y in call(x, weight, bias, len(local_tensor(x)), *args))


@implements("native_group_norm_backward")
def _group_norm_backward(
    call: Local,
    grad: DTensor,
    x: DTensor,
    mean: DTensor,
    rstd: DTensor,
    weight: DTensor | None,
    n: int,
    channels: int,
    size: int,
    groups: int,
    mask: list[bool],
) -> Any:
    _require_examples(x, (weight,))
    tensors = divide(grad, 0), x, divide(mean, 0), divide(rstd, 0), weight
    args = (*tensors, len(local_tensor(x)), channels, size, groups)
    return _layer_gradients(call, x, n * size, args, mask)


@implements("embedding_dense_backward")
def _embedding_backward(call: Local, grad: DTensor, indices: DTensor, rows: int, *args: Any) -> Any:
    # Which terms a sum has is counted by `grid.segment_sum`.
    grad, indices = divide(grad, 0), divide(indices, 0)
    return over_all(call, grad.device_mesh, 0, grad, indices, rows, *args)


def _require_examples(x: DTensor, parameters: Any) -> None:
    """Raise NotExactError unless x is divided along its first dimension, and no parameter is."""
    if not is_divided(x, 0) or any(y.placements[0].is_shard() for y in dtensors(parameters)):
        raise RefusalError("layers are exact for examples divided along the first dimension alone")
