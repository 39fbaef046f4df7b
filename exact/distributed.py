"""Batches that are divided between workers: PyTorch's DTensor under the mode.

The parameters are replicated on each worker, the batch is divided along a dimension. An
operation that keeps the examples apart needs nothing new. One that sums over them takes
each step of `grid` once for all workers: the largest number by an all-reduce of maxima,
rounding on each worker, the sum by an all-reduce of float64 numbers on one grid. Neither
rounds, so the bits are those of one worker with the whole batch, for any number of workers.

DTensor takes all else apart itself. What it would leave as a partial result, to be summed
later in float32, is refused by name; and so are its own all-reduces.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from exact import grid, registry
from exact.dispatch import ExactMode
from exact.errors import NotExactError
from exact.registry import aten

__all__ = ["dispatch"]

Local = Callable[..., Any]  # the operation on this worker's tensors, exactly
Form = Callable[..., Any]

_FORMS: dict[Any, Form] = {}
for _name in (  # by which a DTensor gathers what other workers hold, without arithmetic
    "all_gather_into_tensor", "all_to_all_single", "wait_tensor", "_wrap_tensor_autograd",
):  # fmt: skip
    _collective = getattr(torch.ops._c10d_functional, _name).default
    registry.register(_collective, _collective)
registry.register(torch.ops.c10d.broadcast_.default, torch.ops.c10d.broadcast_.default)
_NONE, _MEAN, _SUM = 0, 1, 2  # PyTorch's numbers of the kinds of reduction


def dispatch(mode: ExactMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation of DTensors. Raises NotExactError where the result would be partial."""
    tensors = list(_dtensors((*args, *kwargs.values())))
    if not tensors:
        return (
            NotImplemented  # by the result of a collective operation, which waits and calls again
        )
    if any(x.device_mesh.ndim != 1 for x in tensors):
        raise _refused(func, "their mesh has several dimensions")
    for x in tensors:
        _require_whole(func, x)
    local = _Local(mode)
    try:
        divided = any(x.placements[0].is_shard() for x in tensors)
        if divided or registry.is_random(func):
            # Of a plain tensor DTensor decides whether it is the same on each worker.
            plain = any(isinstance(x, Tensor) and not isinstance(x, DTensor) for x in args)
            if (form := _FORMS.get(func)) and not plain:
                result = form(partial(local.call, func), *args, **kwargs)
                if result is not NotImplemented:
                    return result
            elif divided and registry.is_random(func):
                raise _RefusalError("each worker would draw its own random numbers")
        with local:
            result = func(*args, **kwargs)
    except (_RefusalError, NotImplementedError) as error:
        raise _refused(func, str(error)) from error
    except RuntimeError as error:
        if "Sharding propagation failed" not in str(error):
            raise
        raise _refused(func, str(error).partition("\n")[0]) from error
    for x in _dtensors([result]):
        _require_whole(func, x)
    return result


class _RefusalError(Exception):
    """Why an operation of divided tensors is not exact."""


def _refused(func: Any, reason: str) -> NotExactError:
    return NotExactError(
        f"{func} of tensors divided between workers has no exact implementation: {reason}"
    )


class _Local(ExactMode):
    """The mode in which a DTensor takes itself apart: operations on its local tensors are exact."""

    def __init__(self, mode: ExactMode) -> None:
        super().__init__()
        self.table = mode.table

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Leave DTensors to themselves, and the search for shapes, which computes nothing."""
        if any(issubclass(kind, FakeTensor) for kind in types):
            return func(*args, **(kwargs or {}))
        if any(issubclass(kind, (DTensor, AsyncCollectiveTensor)) for kind in types):
            return NotImplemented
        if any(isinstance(x, Tensor) and x.is_meta for x in args):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """The operation on local tensors, for DTensors their own."""
        local_args = [_local(x) if isinstance(x, DTensor) else x for x in args]
        return super().__torch_dispatch__(func, (), tuple(local_args), kwargs)


def _dtensors(values: Any) -> Iterator[DTensor]:
    for value in values:
        if isinstance(value, DTensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _dtensors(value)


def _local(x: DTensor) -> Tensor:
    local = x._local_tensor
    return local.wait() if isinstance(local, AsyncCollectiveTensor) else local


def _require_whole(func: Any, x: DTensor) -> None:
    """Raise NotExactError for a partial result, and for rows that are on other workers."""
    (placement,) = x.placements
    what = str(placement)
    if type(placement) is Replicate:
        return
    if type(placement) is Shard:
        shape = list(x.shape)
        length, worker = shape[placement.dim], x.device_mesh.get_local_rank()
        each = -(-length // x.device_mesh.size())  # as torch.chunk divides
        shape[placement.dim] = min(max(length - worker * each, 0), each)
        if list(x._local_tensor.shape) == shape:
            return
        what = "rows that are divided in another way"
    raise _refused(func, f"it has {what}")


def _replicated(x: Tensor, mesh: DeviceMesh) -> DTensor:
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False)


def _divided(x: Tensor, like: DTensor, dim: int = 0) -> DTensor:
    """This worker's part of a tensor, which is divided along `dim` as `like` is somewhere."""
    shape = list(x.shape)
    shape[dim] = like.shape[_dim(like)]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return DTensor.from_local(
        x.contiguous(), like.device_mesh, [Shard(dim)], run_check=False,
        shape=torch.Size(shape), stride=tuple(strides),
    )  # fmt: skip


def _dim(x: DTensor) -> int:
    """The dimension along which x is divided."""
    return int(cast(Shard, x.placements[0]).dim)


def _is_divided(x: Any, dim: int) -> bool:
    return isinstance(x, DTensor) and x.placements == (Shard(dim % max(x.dim(), 1)),)


def _divide(x: DTensor, dim: int) -> DTensor:
    """The tensor, divided along `dim`: of one that all workers have, each takes its part."""
    if _is_divided(x, dim):
        return x
    if not x.placements[0].is_replicate():
        raise _RefusalError(f"a tensor divided along another dimension than {dim} is not exact")
    return x.redistribute(placements=[Shard(dim)])


def _peers(mesh: DeviceMesh, terms: int) -> grid.Peers:
    def reduce(operation: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        dist.all_reduce(x, operation, mesh.get_group())
        return x

    return grid.Peers(terms, partial(reduce, dist.ReduceOp.MAX), partial(reduce, dist.ReduceOp.SUM))


def _over_all(call: Local, mesh: DeviceMesh, terms: int, *args: Any, **kwargs: Any) -> Any:
    """The operation whose sums have so many terms on all workers together: replicated results."""
    with grid.divided(_peers(mesh, terms)):
        result = call(*args, **kwargs)
    if isinstance(result, tuple):
        return tuple(x if x is None else _replicated(x, mesh) for x in result)
    return _replicated(result, mesh)


def _form(*names: str) -> Callable[[Form], Form]:
    """Register how an operation is computed where an argument is divided.

    The form returns NotImplemented where DTensor may take the operation apart itself.
    """

    def decorate(form: Form) -> Form:
        for name in names:
            packet, _, overload = name.partition(".")
            _FORMS[getattr(getattr(aten, packet), overload or "default")] = form
        return form

    return decorate


@_form("mm", "bmm")
def _matmul(call: Local, a: DTensor, b: DTensor) -> Any:
    if not (_is_divided(a, -1) or _is_divided(b, -2)):
        return NotImplemented
    a, b = _divide(a, a.dim() - 1), _divide(b, b.dim() - 2)
    return _over_all(call, a.device_mesh, a.shape[-1], a, b)


@_form("sum", "sum.dim_IntList", "mean", "mean.dim")
def _sum(call: Local, x: DTensor, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _reduce(call, x, dims, x, dims, *args, **kwargs)


@_form("linalg_vector_norm")
def _norm(
    call: Local, x: DTensor, order: float = 2, dims: Any = None, *args: Any, **kwargs: Any
) -> Any:
    if math.isinf(order):
        return _extreme(call, x, dims)
    return _reduce(call, x, dims, x, order, dims, *args, **kwargs)


def _across(x: DTensor, dims: Any) -> list[int]:
    """The dimensions of a reduction if x is divided along one of them, else none."""
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
    return dims if any(_is_divided(x, dim) for dim in dims) else []


def _reduce(call: Local, x: DTensor, dims: Any, *args: Any, **kwargs: Any) -> Any:
    if not (dims := _across(x, dims)):
        return NotImplemented
    if not x.is_floating_point() and not kwargs.get("dtype"):
        total = _peers(x.device_mesh, 0).total
        return _replicated(total(call(*args, **kwargs)), x.device_mesh)
    terms = math.prod(x.shape[dim] for dim in dims)
    return _over_all(call, x.device_mesh, terms, *args, **kwargs)


@_form("amax", "amin", "max", "min", "max.dim", "min.dim", "argmax", "argmin", "any", "all",
       "any.dim", "all.dim")  # fmt: skip
def _extreme(call: Local, x: DTensor, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    if _across(x, dims):  # before a worker without rows meets an error
        raise _RefusalError("the numbers of one result are on several workers")
    return NotImplemented


@_form("convolution")
def _by_example(call: Local, x: DTensor, *args: Any) -> Any:
    """Of N examples, each by itself: (N, …) to (N, …)."""
    _require_examples(x, args)
    result = call(x, *args)
    if isinstance(result, tuple):
        return tuple(_divided(y, x) for y in result)
    return _divided(result, x)


@_form("native_layer_norm")
def _layer_norm(call: Local, x: DTensor, shape: list[int], *args: Any) -> Any:
    if len(shape) == x.dim():
        raise _RefusalError("layer normalisation over the examples of several workers is not exact")
    return _by_example(call, x, shape, *args)


def _layer_gradients(call: Local, x: DTensor, terms: int, args: Any, mask: list[bool]) -> Any:
    """The gradients of x, by example, and of weight and bias, sums of so many terms."""
    of_x, *of_parameters = mask
    grads: list[DTensor | None] = [None, None, None]
    if of_x:
        grads[0] = _divided(call(*args, [True, False, False])[0], x)
    if any(of_parameters):
        grads[1:] = _over_all(call, x.device_mesh, terms, *args, [False, *of_parameters])[1:]
    return tuple(grads)


@_form("convolution_backward")
def _convolution_backward(
    call: Local, grad: DTensor, x: DTensor, weight: DTensor, *args: Any
) -> Any:
    _require_examples(x, (weight,))
    grad = _divide(grad, 0)
    *options, mask = args
    terms = len(x) * math.prod(grad.shape[2:])
    return _layer_gradients(call, x, terms, (grad, x, weight, *options), mask)


@_form("native_layer_norm_backward")
def _layer_norm_backward(
    call: Local, grad: DTensor, x: DTensor, shape: list[int], mean: DTensor, rstd: DTensor,
    weight: DTensor | None, bias: DTensor | None, mask: list[bool],
) -> Any:  # fmt: skip
    _require_examples(x, (weight, bias))
    args = [_divide(grad, 0), x, shape, _divide(mean, 0), _divide(rstd, 0), weight, bias]
    return _layer_gradients(call, x, x.numel() // math.prod(shape), args, mask)


@_form("max_pool3d_with_indices", "adaptive_max_pool3d")
def _needs_an_example(call: Local, x: DTensor, *args: Any) -> Any:
    raise _RefusalError("PyTorch's implementation fails on a worker without examples")


@_form("native_group_norm")
def _group_norm(
    call: Local, x: DTensor, weight: DTensor | None, bias: DTensor | None, n: int, *args: Any
) -> Any:
    _require_examples(x, (weight, bias))
    return tuple(_divided(y, x) for y in call(x, weight, bias, len(_local(x)), *args))


@_form("native_group_norm_backward")
def _group_norm_backward(
    call: Local, grad: DTensor, x: DTensor, mean: DTensor, rstd: DTensor, weight: DTensor | None,
    n: int, channels: int, size: int, groups: int, mask: list[bool],
) -> Any:  # fmt: skip
    _require_examples(x, (weight,))
    tensors = _divide(grad, 0), x, _divide(mean, 0), _divide(rstd, 0), weight
    args = (*tensors, len(_local(x)), channels, size, groups)
    return _layer_gradients(call, x, n * size, args, mask)


@_form("embedding_dense_backward")
def _embedding_backward(call: Local, grad: DTensor, indices: DTensor, rows: int, *args: Any) -> Any:
    # Which terms a sum has is counted by `grid.segment_sum`.
    grad, indices = _divide(grad, 0), _divide(indices, 0)
    return _over_all(call, grad.device_mesh, 0, grad, indices, rows, *args)


@_form("nll_loss_forward")
def _nll_loss(
    call: Local, x: DTensor, target: DTensor, weight: DTensor | None, reduction: int, ignore: int
) -> Any:
    args = (_divide(x, 0), _divide(target, 0), weight, reduction, ignore)
    if reduction != _NONE:
        return _over_all(call, x.device_mesh, len(x), *args)
    losses, total_weight = call(*args)
    return _divided(losses, args[0]), _replicated(total_weight, x.device_mesh)


@_form("nll_loss_backward")
def _nll_loss_backward(call: Local, grad: DTensor, x: DTensor, target: DTensor, *args: Any) -> Any:
    x = _divide(x, 0)
    grad = _divide(grad, 0) if grad.dim() else grad
    return _divided(call(grad, x, _divide(target, 0), *args), x)


@_form("mse_loss")
def _mse_loss(call: Local, x: DTensor, target: DTensor, reduction: int = _MEAN) -> Any:
    x, target = _alike(x, target)
    if reduction == _NONE:
        return _divided(call(x, target, reduction), x, _dim(x))
    return _over_all(call, x.device_mesh, x.numel(), x, target, reduction)


@_form("mse_loss_backward")
def _mse_loss_backward(
    call: Local, grad: DTensor, x: DTensor, target: DTensor, reduction: int
) -> Any:
    x, target = _alike(x, target)
    dim = _dim(x)
    grad = _divide(grad, dim) if grad.dim() else grad
    result = call(grad, x, target, _SUM)
    if reduction == _MEAN:  # over the numbers of all workers
        result = result / torch.full_like(result, x.numel())
    return _divided(result, x, dim)


@_form("uniform_", "normal_", "random_", "bernoulli_.float")
def _draw_(call: Local, x: DTensor, *args: Any, **kwargs: Any) -> DTensor:
    """The numbers that one worker would draw, of which each takes its part."""
    whole = call(_blank(x), *args, **kwargs)
    _local(x).copy_(_part(whole, x))
    return x


@_form("rand_like", "randn_like")
def _draw(call: Local, x: DTensor, **kwargs: Any) -> DTensor:
    return _placed(_part(call(_blank(x), **kwargs), x), x)


@_form("native_dropout")
def _dropout(call: Local, x: DTensor, p: float, train: bool | None) -> Any:
    # Of ones, so that it returns the factors, which are exact.
    factors, kept = (_part(y, x) for y in call(_blank(x).fill_(1), p, train))
    return _placed(_local(x) * factors, x), _placed(kept, x)


def _placed(x: Tensor, like: DTensor) -> DTensor:
    """A part of the shape of `like`'s, placed as it is."""
    if like.placements[0].is_replicate():
        return _replicated(x, like.device_mesh)
    return _divided(x, like, _dim(like))


def _blank(x: DTensor) -> Tensor:
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device)


def _part(whole: Tensor, like: DTensor) -> Tensor:
    """This worker's part of a tensor that all have, without a message between them."""
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()


def _alike(x: DTensor, y: DTensor) -> tuple[DTensor, DTensor]:
    """Both tensors, divided along the dimension along which one of them is."""
    if x.shape != y.shape:
        raise _RefusalError("losses of divided tensors of two shapes are not exact")
    dim = _dim(x if x.placements[0].is_shard() else y)
    return _divide(x, dim), _divide(y, dim)


def _require_examples(x: DTensor, parameters: Any) -> None:
    """Raise NotExactError unless x is divided along its first dimension, and no parameter is."""
    if not _is_divided(x, 0) or any(y.placements[0].is_shard() for y in _dtensors(parameters)):
        raise _RefusalError("layers are exact for examples divided along the first dimension alone")
