"""Matrix products, reductions, losses and random draws of tensors that are divided."""

import math
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from exact.distributed.implementations import implements
from exact.distributed.tensors import (
    Local,
    RefusalError,
    alike,
    blank,
    dimension,
    divide,
    from_part,
    is_divided,
    local_tensor,
    over_all,
    part,
    peers,
    placed,
    replicated,
)

_NONE, _MEAN, _SUM = 0, 1, 2  # PyTorch's numbers of the kinds of reduction


@implements("mm", "bmm")
def _matmul(call: Local, a: DTensor, b: DTensor) -> Any:
    if not (is_divided(a, -1) or is_divided(b, -2)):
        return NotImplemented
    a, b = divide(a, a.dim() - 1), divide(b, b.dim() - 2)
    return over_all(call, a.device_mesh, a.shape[-1], a, b)


@implements("linalg_qr", "linalg_cholesky_ex", "linalg_solve_triangular", "cholesky_solve")
def _decomposition(call: Local, *args: Any, **kwargs: Any) -> Any:
    raise RefusalError("DTensor may divide one matrix between workers")


@implements("sum", "sum.dim_IntList", "mean", "mean.dim")
def _sum(call: Local, x: DTensor, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _reduce(call, x, dims, x, dims, *args, **kwargs)


@implements("linalg_vector_norm")
def _norm(
    call: Local, x: DTensor, order: float = 2, dims: Any = None, *args: Any, **kwargs: Any
) -> Any:
    if math.isinf(order):
        return _extreme(call, x, dims)
    return _reduce(call, x, dims, x, order, dims, *args, **kwargs)


def _across(x: DTensor, dims: Any) -> list[int]:
    """The dimensions of a reduction if x is divided along one of them, else none."""
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
    return dims if any(is_divided(x, dim) for dim in dims) else []


def _reduce(call: Local, x: DTensor, dims: Any, *args: Any, **kwargs: Any) -> Any:
    if not (dims := _across(x, dims)):
        return NotImplemented
    if not x.is_floating_point() and not kwargs.get("dtype"):
        total = peers(x.device_mesh, 0).total
        return replicated(total(call(*args, **kwargs)), x.device_mesh)
    terms = math.prod(x.shape[dim] for dim in dims)
    return over_all(call, x.device_mesh, terms, *args, **kwargs)


@implements("amax", "amin", "max", "min", "max.dim", "min.dim", "argmax", "argmin")
@implements("any", "all", "any.dim", "all.dim")
def _extreme(call: Local, x: DTensor, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    if _across(x, dims):  # before a worker without rows meets an error
        raise RefusalError("the numbers of one result are on several workers")
    return NotImplemented


@implements("nll_loss_forward")
def _nll_loss(
    call: Local, x: DTensor, target: DTensor, weight: DTensor | None, reduction: int, ignore: int
) -> Any:
    args = (divide(x, 0), divide(target, 0), weight, reduction, ignore)
    if reduction != _NONE:
        return over_all(call, x.device_mesh, len(x), *args)
    losses, total_weight = call(*args)
    return from_part(losses, args[0]), replicated(total_weight, x.device_mesh)


@implements("nll_loss_backward")
def _nll_loss_backward(call: Local, grad: DTensor, x: DTensor, target: DTensor, *args: Any) -> Any:
    x = divide(x, 0)
    grad = divide(grad, 0) if grad.dim() else grad
    return from_part(call(grad, x, divide(target, 0), *args), x)


@implements("mse_loss")
def _mse_loss(call: Local, x: DTensor, target: DTensor, reduction: int = _MEAN) -> Any:
    x, target = alike(x, target)
    if reduction == _NONE:
        return from_part(call(x, target, reduction), x, dimension(x))
    return over_all(call, x.device_mesh, x.numel(), x, target, reduction)


@implements("mse_loss_backward")
def _mse_loss_backward(
    call: Local, grad: DTensor, x: DTensor, target: DTensor, reduction: int
) -> Any:
    x, target = alike(x, target)
    dim = dimension(x)
    grad = divide(grad, dim) if grad.dim() else grad
    result = call(grad, x, target, _SUM)
    if reduction == _MEAN:  # over the numbers of all workers
        result = result / torch.full_like(result, x.numel())
    return from_part(result, x, dim)


@implements("uniform_", "normal_", "random_", "bernoulli_.float")
def _draw_(call: Local, x: DTensor, *args: Any, **kwargs: Any) -> DTensor:
    """The numbers that one worker would draw, of which each takes its part."""
    whole = call(blank(x), *args, **kwargs)
    local_tensor(x).copy_(part(whole, x))
    return x


@implements("rand_like", "randn_like")
def _draw(call: Local, x: DTensor, **kwargs: Any) -> DTensor:
    return placed(part(call(blank(x), **kwargs), x), x)


@implements("native_dropout")
def _dropout(call: Local, x: DTensor, p: float, train: bool | None) -> Any:
    # Of ones, so that it returns the factors, which are exact.
    factors, kept = (part(y, x) for y in call(blank(x).fill_(1), p, train))
    return placed(local_tensor(x) * factors, x), placed(kept, x)
