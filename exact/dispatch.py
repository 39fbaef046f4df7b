"""A mode under which plain PyTorch code computes the same bits on every machine.

    with exact.mode():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

Below autograd, PyTorch is a stream of small operations. Each meets one of two tables:
operations that are exact as they are, since they move, compare or round single
numbers by IEEE 754; and operations with an exact form of ours. Any other raises
NotExactError. So nothing inexact can slip in unseen.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exact import functions, grid, machine

__all__ = ["NotExactError", "mode"]

aten = torch.ops.aten


class NotExactError(RuntimeError):
    """An operation has no exact form; the message names it and says what to do."""


@contextlib.contextmanager
def mode() -> Iterator[None]:
    """Compute exactly within the block.

    Raises NotExactError where an operation has no exact form, and MachineError where
    the machine does not keep the rules of IEEE 754 that exactness rests on.
    """
    machine.check()
    with _Mode():
        yield


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        form = FORMS.get(func)
        if form is None:
            raise NotExactError(
                f"{func} has no exact form: use other operations, or leave exact mode for it"
            )
        result = form(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and (
            result.dtype in _REFUSED_TYPES or result.device.type not in _DEVICES
        ):
            raise NotExactError(
                f"{func} gives {result.dtype} on {result.device.type}: exact are real numbers of 32"
                " and 64 bits, integers and booleans, on cpu and cuda"
            )
        return result


_REFUSED_TYPES = {torch.float16, torch.bfloat16, torch.complex32, torch.complex64, torch.complex128}
_DEVICES = {"cpu", "cuda", "meta"}

# Exact as they are, in every overload: views, copies and casts; construction;
# comparison and choice; integers; and + - × of two numbers each, which IEEE 754
# defines to the last bit.
_NAMES = """
    alias as_strided detach expand lift_fresh permute select slice split split_with_sizes
    squeeze t transpose unbind unfold unsqueeze view _unsafe_view _reshape_alias diagonal
    clone copy_ _to_copy contiguous fill_ zero_ resize_
    empty empty_like empty_strided full full_like new_empty new_empty_strided new_full
    new_ones new_zeros ones ones_like zeros zeros_like scalar_tensor arange eye
    _local_scalar_dense
    eq ne lt le gt ge isnan isinf where masked_fill masked_fill_ any all equal
    logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift
    __lshift__ __rshift__ __and__ __or__ __xor__
    abs abs_ neg neg_ sign sgn relu relu_ threshold_backward clamp clamp_ clamp_min clamp_max
    maximum minimum max min amax amin argmax argmin aminmax sort topk
    floor ceil trunc round
    gather index index_select embedding cat stack constant_pad_nd flip roll tril triu
    select_backward slice_backward mul mul_ bincount
"""
EXACT = {
    getattr(getattr(aten, name), overload)
    for name in _NAMES.split()
    for overload in getattr(aten, name).overloads()
} | {
    # Marks of the profiler, without arithmetic, which optimizers set.
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
}


def _dims(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims or [])


def _add(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return torch.add(a, b if alpha == 1 else torch.mul(b, alpha))


def _add_(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return a.add_(b if alpha == 1 else torch.mul(b, alpha))


def _sub(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return torch.sub(a, b if alpha == 1 else torch.mul(b, alpha))


def _sub_(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return a.sub_(b if alpha == 1 else torch.mul(b, alpha))


def _rsub(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return torch.sub(torch.as_tensor(b, dtype=a.dtype, device=a.device), a * alpha)


def _divisor(a: Tensor, b: Any) -> Tensor:
    # On a GPU, division by a number or by a tensor on the CPU multiplies by the reciprocal.
    dtype = torch.result_type(a, b)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return torch.as_tensor(b, dtype=dtype, device=a.device)


def _div(a: Tensor, b: Any) -> Tensor:
    return torch.div(a, _divisor(a, b))


def _div_(a: Tensor, b: Any) -> Tensor:
    return a.div_(_divisor(a, b))


def _elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def form(x: Tensor) -> Tensor:
        return function(x).to(x.dtype if x.is_floating_point() else torch.get_default_dtype())

    return form


def _pow(x: Tensor, exponent: float) -> Tensor:
    """By repeated multiplication, a square root for a half, and one division for a negative."""
    whole, half = divmod(abs(exponent), 1)
    if half not in (0, 0.5) or whole > 16:
        raise NotExactError(
            f"pow with exponent {exponent} has no exact form: multiples of 1/2 up to 16 have"
        )
    result = functions.sqrt(x).to(x.dtype) if half else torch.ones_like(x)
    for _ in range(int(whole)):
        result = result * x
    return result if exponent >= 0 else torch.ones_like(x) / result


def _sum(
    x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if not x.is_floating_point() and not (dtype and dtype.is_floating_point):
        return (
            torch.sum(x, _dims(dims), keepdim, dtype=dtype) if dims else torch.sum(x, dtype=dtype)
        )
    return grid.total(x, _dims(dims), keepdim).to(dtype or x.dtype)


def _mean(
    x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    total = grid.total(x, _dims(dims), keepdim)
    count = x.numel() // max(total.numel(), 1)
    return total.div_(torch.full_like(total, count)).to(dtype or x.dtype)


def _norm(
    x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    if order != 2:
        raise NotExactError(f"the norm of order {order} has no exact form: that of order 2 has")
    y = x.double()
    return functions.sqrt(grid.total(y * y, _dims(dims), keepdim)).to(dtype or x.dtype)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return grid.matmul(a, b).to(a.dtype)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta != 1 or alpha != 1:
        raise NotExactError("addmm with factors has no exact form: multiply apart")
    return grid.matmul(a, b).add_(bias).to(a.dtype)


def _log_softmax64(x: Tensor, dim: int) -> Tensor:
    shifted = x.double() - x.amax(dim, keepdim=True).double()
    return shifted.sub_(functions.log(grid.total(functions.exp(shifted), [dim], keepdim=True)))


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return _log_softmax64(x, dim).to(x.dtype)


def _log_softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    # As the gradient of the whole: g - softmax · Σg.
    total = grid.total(grad, [dim], keepdim=True)
    return (grad.double() - functions.exp(output) * total).to(dtype)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return functions.exp(_log_softmax64(x, dim)).to(x.dtype)


def _softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    g, y = grad.double(), output.double()
    return (y * (g - grid.total(g * y, [dim], keepdim=True))).to(dtype)


_NONE, _MEAN, _SUM = 0, 1, 2  # PyTorch's numbers of the kinds of reduction


def _kept(target: Tensor, weight: Tensor | None, ignore_index: int, like: Tensor) -> Tensor:
    """The weight of each example: that of its class, and 0 where it is to be ignored."""
    chosen = weight[target.clamp(min=0)] if weight is not None else torch.ones_like(like)
    return torch.where(target == ignore_index, torch.zeros_like(chosen), chosen)


def _nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    picked = x.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    kept = _kept(target, weight, ignore_index, picked)
    losses = torch.where(kept == 0, torch.zeros_like(picked), -picked * kept)
    if reduction == _NONE:
        return losses, x.new_zeros(())
    total, weights = grid.total(losses, [0]), grid.total(kept, [0])
    result = total / weights if reduction == _MEAN else total
    return result.to(x.dtype), weights.to(x.dtype)


def _nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int,
    ignore_index: int, total_weight: Tensor,
) -> Tensor:  # fmt: skip
    kept = _kept(target, weight, ignore_index, x[:, 0])
    each = -grad * kept
    if reduction == _MEAN:
        each = each / total_weight
    return torch.zeros_like(x).scatter_(1, target.clamp(min=0).unsqueeze(1), each.unsqueeze(1))


def _mse_loss(x: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    squares = (x - target) * (x - target)
    if reduction == _NONE:
        return squares
    return _mean(squares) if reduction == _MEAN else _sum(squares)


def _mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    result = 2 * (x - target) * grad
    return _div(result, float(x.numel())) if reduction == _MEAN else result


def _sigmoid_backward(grad: Tensor, output: Tensor) -> Tensor:
    return grad * (output * (1 - output))


def _tanh_backward(grad: Tensor, output: Tensor) -> Tensor:
    return grad * (1 - output * output)


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + a * b * value


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + a / b * value


def _lerp(x: Tensor, end: Tensor, weight: float) -> Tensor:
    return x + (end - x) * weight


def _in_place(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def in_place(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.copy_(form(x, *args, **kwargs))

    return in_place


def _foreach(form: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """The form for lists of tensors, with a list or one number as the other operand."""

    def foreach(xs: list[Tensor], other: Any, **kwargs: Any) -> list[Tensor]:
        others = other if isinstance(other, list) else [other] * len(xs)
        return [form(x, y, **kwargs) for x, y in zip(xs, others, strict=True)]

    return foreach


def _foreach_(form: Callable[..., Tensor]) -> Callable[..., None]:
    """The form for lists of tensors, in place."""
    foreach = _foreach(form)

    def in_place(xs: list[Tensor], other: Any, **kwargs: Any) -> None:
        foreach(xs, other, **kwargs)

    return in_place


FORMS: dict[Any, Callable[..., Any]] = {operation: operation for operation in EXACT} | {
    aten._foreach_add.List: _foreach(_add),
    aten._foreach_add.Scalar: _foreach(_add),
    aten._foreach_add_.List: _foreach_(_add_),
    aten._foreach_add_.Scalar: _foreach_(_add_),
    aten._foreach_mul.Scalar: _foreach(torch.mul),
    aten._foreach_mul_.Scalar: _foreach_(Tensor.mul_),
    aten._foreach_neg.default: lambda xs: [-x for x in xs],
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.add_.Tensor: _add_,
    aten.add_.Scalar: _add_,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.sub_.Tensor: _sub_,
    aten.sub_.Scalar: _sub_,
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.div_.Tensor: _div_,
    aten.div_.Scalar: _div_,
    aten.reciprocal.default: lambda x: _div(torch.ones_like(x), x),
    aten.addcmul.default: _addcmul,
    aten.addcmul_.default: _in_place(_addcmul),
    aten.addcdiv.default: _addcdiv,
    aten.addcdiv_.default: _in_place(_addcdiv),
    aten.lerp.Scalar: _lerp,
    aten.lerp_.Scalar: _in_place(_lerp),
    aten.exp.default: _elementwise(functions.exp),
    aten.log.default: _elementwise(functions.log),
    aten.sqrt.default: _elementwise(functions.sqrt),
    aten.sigmoid.default: _elementwise(functions.sigmoid),
    aten.sigmoid_.default: _in_place(_elementwise(functions.sigmoid)),
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.tanh.default: _elementwise(functions.tanh),
    aten.tanh_.default: _in_place(_elementwise(functions.tanh)),
    aten.tanh_backward.default: _tanh_backward,
    aten.pow.Tensor_Scalar: _pow,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _norm,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten._softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.nll_loss_forward.default: _nll_loss,
    aten.nll_loss_backward.default: _nll_loss_backward,
    aten.mse_loss.default: _mse_loss,
    aten.mse_loss_backward.default: _mse_loss_backward,
}
