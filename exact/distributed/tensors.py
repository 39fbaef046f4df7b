"""What a DTensor holds on this worker, and DTensors of what each worker has computed."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from exact import grid
from exact.errors import NotExactError

Local = Callable[..., Any]  # an operation on this worker's tensors, exactly


class RefusalError(Exception):
    """Why an operation of divided tensors is not exact."""


def refused(func: Any, reason: str) -> NotExactError:
    """The error of an operation that is not exact for divided tensors."""
    return NotExactError(
        f"{func} of tensors divided between workers has no exact implementation: {reason}"
    )


def dtensors(values: Any) -> Iterator[DTensor]:
    """The DTensors among the values, also within lists and tuples."""
    for value in values:
        if isinstance(value, DTensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from dtensors(value)


def local_tensor(x: DTensor) -> Tensor:
    """This worker's part of x."""
    local = x._local_tensor
    return local.wait() if isinstance(local, AsyncCollectiveTensor) else local


def require_whole(func: Any, x: DTensor) -> None:
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
    raise refused(func, f"it has {what}")


def replicated(x: Tensor, mesh: DeviceMesh) -> DTensor:
    """The DTensor of numbers that each worker has computed alike."""
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False)


def from_part(x: Tensor, like: DTensor, dim: int = 0) -> DTensor:
    """The tensor divided along `dim`, as `like` is somewhere, whose part on this worker is x."""
    shape = list(x.shape)
    shape[dim] = like.shape[dimension(like)]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return DTensor.from_local(
        x.contiguous(),
        like.device_mesh,
        [Shard(dim)],
        run_check=False,
        shape=torch.Size(shape),
        stride=tuple(strides),
    )


def dimension(x: DTensor) -> int:
    """The dimension along which x is divided."""
    return int(cast(Shard, x.placements[0]).dim)


def is_divided(x: Any, dim: int) -> bool:
    """Whether x is a DTensor that is divided along this dimension."""
    return isinstance(x, DTensor) and x.placements == (Shard(dim % max(x.dim(), 1)),)


def divide(x: DTensor, dim: int) -> DTensor:
    """The tensor, divided along `dim`: of one that all workers have, each takes its part."""
    if is_divided(x, dim):
        return x
    if not x.placements[0].is_replicate():
        raise RefusalError(f"a tensor divided along another dimension than {dim} is not exact")
    return x.redistribute(placements=[Shard(dim)])


def peers(mesh: DeviceMesh, terms: int) -> grid.Peers:
    """What `grid` asks of the other workers for a sum of so many terms on all of them."""

    def reduce(operation: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        dist.all_reduce(x, operation, mesh.get_group())
        return x

    return grid.Peers(terms, partial(reduce, dist.ReduceOp.MAX), partial(reduce, dist.ReduceOp.SUM))


def over_all(call: Local, mesh: DeviceMesh, terms: int, *args: Any, **kwargs: Any) -> Any:
    """The operation whose sums have so many terms on all workers together: replicated results."""
    with grid.divided(peers(mesh, terms)):
        result = call(*args, **kwargs)
    if isinstance(result, tuple):
        return tuple(x if x is None else replicated(x, mesh) for x in result)
    return replicated(result, mesh)


def placed(x: Tensor, like: DTensor) -> DTensor:
    """A part of the shape of `like`'s, placed as it is."""
    if like.placements[0].is_replicate():
        return replicated(x, like.device_mesh)
    return from_part(x, like, dimension(like))


def blank(x: DTensor) -> Tensor:
    """Zeros of the whole shape of x, on this worker."""
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device)


def part(whole: Tensor, like: DTensor) -> Tensor:
    """This worker's part of a tensor that all have, without a message between them."""
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()


def alike(x: DTensor, y: DTensor) -> tuple[DTensor, DTensor]:
    """Both tensors, divided along the dimension along which one of them is."""
    if x.shape != y.shape:
        raise RefusalError("losses of divided tensors of two shapes are not exact")
    dim = dimension(x if x.placements[0].is_shard() else y)
    return divide(x, dim), divide(y, dim)
