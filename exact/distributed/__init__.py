"""Batches that are divided between workers: PyTorch's DTensor under the mode.

The parameters are replicated on each worker, the batch is divided along a dimension. An
operation that keeps the examples apart needs nothing new. One that sums over them takes
each step of `grid` once for all workers: the largest number by an all-reduce of maxima,
rounding on each worker, the sum by an all-reduce of float64 numbers on one grid. Neither
rounds, so the bits are those of one worker with the whole batch, for any number of workers.

DTensor takes all else apart itself. What it would leave as a partial result, to be summed
later in float32, is refused by name; and so are its own all-reduces.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

from exact import registry
from exact.dispatch import ExactMode
from exact.distributed import layers as _layers  # noqa: F401  (registers them)
from exact.distributed import operations as _operations  # noqa: F401
from exact.distributed.implementations import IMPLEMENTATIONS
from exact.distributed.tensors import RefusalError, dtensors, local_tensor, refused, require_whole

__all__ = ["dispatch"]

for _name in (  # by which a DTensor gathers what other workers hold, without arithmetic
    "all_gather_into_tensor",
    "all_to_all_single",
    "wait_tensor",
    "_wrap_tensor_autograd",
):
    _collective = getattr(torch.ops._c10d_functional, _name).default
    registry.register(_collective, _collective)
registry.register(torch.ops.c10d.broadcast_.default, torch.ops.c10d.broadcast_.default)


def dispatch(mode: ExactMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation of DTensors. Raises NotExactError where the result would be partial."""
    tensors = list(dtensors((*args, *kwargs.values())))
    if not tensors:
        # By the result of a collective operation, which waits and calls again.
        return NotImplemented
    if any(x.device_mesh.ndim != 1 for x in tensors):
        raise refused(func, "their mesh has several dimensions")
    for x in tensors:
        require_whole(func, x)
    local_mode = _Local(mode)
    try:
        divided = any(x.placements[0].is_shard() for x in tensors)
        if divided or registry.is_random(func):
            # Of a plain tensor DTensor decides whether it is the same on each worker.
            plain = any(isinstance(x, Tensor) and not isinstance(x, DTensor) for x in args)
            if (implementation := IMPLEMENTATIONS.get(func)) and not plain:
                result = implementation(partial(local_mode.call, func), *args, **kwargs)
                if result is not NotImplemented:
                    return result
            elif divided and registry.is_random(func):
                raise RefusalError("each worker would draw its own random numbers")
        with local_mode:
            result = func(*args, **kwargs)
    except (RefusalError, NotImplementedError) as error:
        raise refused(func, str(error)) from error
    except RuntimeError as error:
        if "Sharding propagation failed" not in str(error):
            raise
        raise refused(func, str(error).partition("\n")[0]) from error
    for x in dtensors([result]):
        require_whole(func, x)
    return result


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
        local_args = [local_tensor(x) if isinstance(x, DTensor) else x for x in args]
        return super().__torch_dispatch__(func, (), tuple(local_args), kwargs)
