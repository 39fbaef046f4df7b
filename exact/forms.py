"""The exact forms of PyTorch's operations on numbers, sums, products and losses.

Each has the signature of the operation that it stands for, below autograd. Sums and
functions are computed in float64 and rounded once to the operand's type.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from exact import functions, grid
from exact.errors import NotExactError

__all__ = ["FORMS", "in_place", "overloads"]

aten = torch.ops.aten


def overloads(names: str) -> list[Any]:
    """All overloads of the operations with these names."""
    packets = [getattr(aten, name) for name in names.split()]
    return [getattr(packet, overload) for packet in packets for overload in packet.overloads()]


def _dims(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims or [])


def _scaled(a: Tensor, b: Any, alpha: float) -> Any:
    if alpha == 1:
        return b
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point and not grid.holds(dtype, alpha):
        raise TypeError(f"expected an alpha of {dtype}, not {alpha}")
    return (b.to(dtype) if isinstance(b, Tensor) else b) * alpha


def _add(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return torch.add(a, _scaled(a, b, alpha))


def _add_(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return a.add_(_scaled(a, b, alpha))


def _sub(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return torch.sub(a, _scaled(a, b, alpha))


def _sub_(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return a.sub_(_scaled(a, b, alpha))


def _rsub(a: Tensor, b: Any, alpha: float = 1) -> Tensor:
    dtype = torch.result_type(a, b)
    return _sub(torch.as_tensor(b, dtype=dtype, device=a.device), a, alpha=alpha)


def _divisor(a: Tensor, b: Any) -> Any:
    # On a GPU, division by a number or by a tensor on the CPU multiplies by the reciprocal.
    if a.device.type == "cpu":
        return b
    dtype = torch.result_type(a, b)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return torch.as_tensor(b, dtype=dtype, device=a.device)


def _div(a: Tensor, b: Any) -> Tensor:
    return torch.div(a, _divisor(a, b))


def _div_(a: Tensor, b: Any) -> Tensor:
    return a.div_(_divisor(a, b))


def _moved(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operation, which moves numbers, and the bytes that they come from."""

    def form(x: Tensor, *args: Any) -> Tensor:
        return grid.move_bytes(x, lambda moved: operation(moved, *args))

    return form


def _elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def form(x: Tensor) -> Tensor:
        return function(x).to(x.dtype if x.is_floating_point() else torch.get_default_dtype())

    return form


def _pow(x: Tensor, exponent: float) -> Tensor:
    """By repeated multiplication, a square root for a half, and one division for a negative."""
    dtype = torch.result_type(x, exponent)
    if not dtype.is_floating_point:
        return torch.pow(x, exponent)  # integers, which no sum rounds
    whole, half = divmod(abs(exponent), 1)
    if half not in (0, 0.5) or whole > 16:
        raise NotExactError(
            f"pow with exponent {exponent} has no exact form: multiples of 1/2 up to 16 have"
        )
    y = x.double()
    result = functions.sqrt(y) if half else torch.ones_like(y)
    for _ in range(int(whole)):
        result = result * y
    return (result if exponent >= 0 else torch.ones_like(y) / result).to(dtype)


def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    if weights is not None:
        raise NotExactError("bincount with weights has no exact form: use scatter_add")
    return torch.bincount(x, minlength=minlength)


def _of_integers(operation: Any) -> Callable[..., Tensor]:
    def form(a: Tensor, b: Any) -> Tensor:
        result: Tensor = operation(a, b)
        if result.is_floating_point():
            raise NotExactError(f"{operation} has no exact form but for integers")
        return result

    return form


def _sum(
    x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else _to_copy(x, dtype=dtype)
    if not x.is_floating_point():
        return torch.sum(x, _dims(dims) or None, keepdim, dtype=dtype)
    return grid.total(x, _dims(dims), keepdim).to(x.dtype)


def _mean(
    x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else _to_copy(x, dtype=dtype)
    grid.require_fractions(x)
    return grid.mean(x, _dims(dims), keepdim).to(x.dtype)


def _norm(
    x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    if order != 2:
        raise NotExactError(f"the norm of order {order} has no exact form: that of order 2 has")
    grid.require_fractions(x)
    y = x.to(torch.float64, copy=True)
    return functions.sqrt(grid.total(y.mul_(y), _dims(dims), keepdim)).to(dtype or x.dtype)


def _matmul(a: Tensor, b: Tensor, dims: int = 2) -> Tensor:
    if not a.dim() == b.dim() == dims or a.shape[:-2] != b.shape[:-2]:
        raise RuntimeError(f"expected {dims}-d tensors, as many of both, not {a.shape}, {b.shape}")
    if a.dtype != b.dtype or not a.is_floating_point():
        return torch.matmul(a, b)  # integers, which no sum rounds, or PyTorch's error
    return grid.matmul(a, b).to(a.dtype)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The product and then the sum, each rounded, as PyTorch may also call them one by one.

    Which way a linear layer goes depends on the layout of its input in memory.
    """
    if beta != 1 or alpha != 1:
        raise NotExactError("addmm with factors has no exact form: multiply apart")
    grid.require_same_type(a, bias)
    return _matmul(a, b).add_(bias)


def _log_softmax64(x: Tensor, dim: int) -> Tensor:
    grid.require_fractions(x)
    if not x.numel():
        return x.double()
    shifted = x.to(torch.float64, copy=True).sub_(x.amax(dim, keepdim=True))
    # The largest exponential is 1, which spares the search for it and makes the sum normal.
    exponentials = functions.exp_normal(shifted.clamp(min=-700))
    total = grid.total(exponentials, [dim], keepdim=True, largest=1.0)
    return shifted.sub_(functions.log_normal(total))


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return _log_softmax64(x, dim).to(x.dtype)


def _log_softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    # As the gradient of the whole: g - softmax · Σg.
    total = grid.total(grad, [dim], keepdim=True)
    return (grad.double() - functions.exp(output) * total).to(dtype)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return functions.exp(_log_softmax64(x, dim)).to(x.dtype)


def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """With 0 instead of NaN where all of x is -∞, as attention wants where all is masked."""
    nothing = (x == -math.inf).all(dim, keepdim=True)
    return _softmax(x, dim, half_to_float=False).masked_fill_(nothing, 0).to(dtype or x.dtype)


def _softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    g, y = grad.double(), output.double()
    return (y * (g - grid.total(g * y, [dim], keepdim=True))).to(dtype)


_NONE, _MEAN, _SUM = 0, 1, 2  # PyTorch's numbers of the kinds of reduction


def _labels(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The labels, with 0 for those to be ignored, and which these are."""
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"expected labels of torch.int64, not {target.dtype}")
    if weight is not None and (weight.shape != x.shape[-1:] or weight.dtype != x.dtype):
        raise RuntimeError(f"expected {x.shape[-1]} weights of {x.dtype}, one for each class")
    ignored = target == ignore_index
    return target.long().masked_fill(ignored, 0), ignored


def _nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    index, ignored = _labels(x, target, weight, ignore_index)
    losses = -x.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    each = None if weight is None else weight[index]
    if each is not None:
        losses.mul_(each)
    losses.masked_fill_(ignored, 0)
    if reduction == _NONE:
        return losses, x.new_zeros(())
    each = torch.ones_like(losses) if each is None else each
    total, weights = grid.total(losses, [0]), grid.total(each.masked_fill_(ignored, 0), [0])
    result = total / weights if reduction == _MEAN else total
    return result.to(x.dtype), weights.to(x.dtype)


def _nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int,
    ignore_index: int, total_weight: Tensor,
) -> Tensor:  # fmt: skip
    index, ignored = _labels(x, target, weight, ignore_index)
    each = -grad if weight is None else weight[index] * -grad
    if reduction == _MEAN:
        each = each / total_weight
    each = torch.where(ignored, 0, each)
    return torch.zeros_like(x).scatter_(-1, index.unsqueeze(-1), each.unsqueeze(-1))


def _mse_loss(x: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    difference = x - target
    grid.require_fractions(difference)
    squares = difference * difference
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


def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return x + a * b * value


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    grid.require_fractions(x)
    # The quotient last, as in steps that optimisers also take in another way on a GPU.
    return x + a * value / b


def _lerp(x: Tensor, end: Tensor, weight: float) -> Tensor:
    grid.require_fractions(x)
    grid.require_same_type(x, end)
    # From the nearer end, so that weights 0 and 1 give the ends themselves.
    return x + (end - x) * weight if weight < 0.5 else end - (end - x) * (1 - weight)


def in_place(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The form, whose result takes the place of its first argument."""

    def form_(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = form(x, *args, **kwargs)
        if not torch.can_cast(result.dtype, x.dtype):
            raise RuntimeError(f"result type {result.dtype} cannot be cast to {x.dtype}")
        return x.copy_(result)

    return form_


def _foreach(form: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """The form for lists of tensors; other operands are lists as long, or one for all."""

    def each(xs: list[Tensor], *others: Any, **kwargs: Any) -> list[Tensor]:
        columns = [y if isinstance(y, list) else [y] * len(xs) for y in others]
        return [form(*row, **kwargs) for row in zip(xs, *columns, strict=True)]

    return each


def _foreach_(form: Callable[..., Tensor]) -> Callable[..., None]:
    """The form for lists of tensors, in place."""
    return _counted(_foreach(form))


def _counted(form: Callable[..., Any]) -> Callable[..., None]:
    """The form, which changes a list of tensors, and this change in their versions.

    Below autograd PyTorch does not count it; marks of bytes and saved tensors rely on it.
    """

    def form_(xs: list[Tensor], *others: Any, **kwargs: Any) -> None:
        form(xs, *others, **kwargs)
        increment_version([x for x in xs if not x.is_inference()])

    return form_


def _foreach_add(xs: list[Tensor], ys: list[Tensor], *, alpha: float = 1) -> Any:
    if alpha == 1:
        return torch._foreach_add(xs, ys)
    products = torch._foreach_mul(ys, alpha)
    torch._foreach_add_(products, xs)  # which nobody else holds
    return products


def _foreach_add_(xs: list[Tensor], ys: list[Tensor], *, alpha: float = 1) -> None:
    torch._foreach_add_(xs, ys if alpha == 1 else torch._foreach_mul(ys, alpha))


def _norms(xs: list[Tensor], order: float = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [_norm(x, order, dtype=dtype) for x in xs]


_sqrt = _elementwise(functions.sqrt)


def _choice(operation: Any) -> Callable[..., Any]:
    """The operation, which picks numbers: of 0 and -0, which are equal, it picks either."""

    def form(*args: Any, **kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        for x in result if isinstance(result, tuple) else (result,):
            if x.is_floating_point():
                x.add_(0.0)  # makes 0 of -0
        return result

    return form


_CHOICES = """
    clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ maximum minimum max min amax amin aminmax
"""


def _sort(
    x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Equal numbers in the order in which they come, whether or not this is asked for."""
    return torch.sort(x, dim=dim, descending=descending, stable=True)


def _topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, ordered: bool = True
) -> tuple[Tensor, ...]:
    """Of equal numbers those that come first; always in order."""
    columns = _sort(x, dim, descending=largest)
    return tuple(y.narrow(dim, 0, k).contiguous() if y.dim() else y for y in columns)


_UNWRITTEN = "empty empty_like empty_strided new_empty new_empty_strided"


def _written(operation: Any) -> Callable[..., Tensor]:
    """The operation, which leaves memory as it found it, and then something in it."""
    return lambda *args, **kwargs: _fill(operation(*args, **kwargs))


def _fill(x: Tensor) -> Tensor:
    return x.fill_(math.nan if x.is_floating_point() or x.is_complex() else -1)


def _resize_(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    def held() -> int:
        return x.untyped_storage().nbytes() // x.element_size()

    before = held()
    x.resize_(*args, **kwargs)
    _fill(x.as_strided((held() - before,), (1,), before))
    return x


def _to_copy(x: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    if dtype is not None and _loses_numbers(x, dtype):
        x = _within(x, dtype)
    result: Tensor = aten._to_copy(x, dtype=dtype, **options)
    return result


def _copy_(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return x.copy_(_within(source, x.dtype) if _loses_numbers(source, x.dtype) else source)


def _fill_by(x: Tensor, value: Tensor) -> Tensor:
    if value.dim():
        raise RuntimeError(f"expected one number to fill with, not {tuple(value.shape)}")
    return _copy_(x, value)


def _loses_numbers(x: Tensor, dtype: torch.dtype) -> bool:
    whole = not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool
    return x.is_floating_point() and whole


def _within(x: Tensor, dtype: torch.dtype) -> Tensor:
    """X with 0 for NaN and the nearest of the integers' ends for what is beyond them.

    Which integer such a number becomes is left to the processor.
    """
    limits = torch.iinfo(dtype)
    top = float(limits.max)
    if limits.bits == 64:
        top = math.nextafter(top, 0)  # as 2^63 - 1 is no float64
    y = x.double()
    return torch.where(y.isnan(), 0.0, y).clamp_(float(limits.min), top)


def _arange(start: float, end: float, step: float = 1, **options: Any) -> Tensor:
    """With fractions, start + i · step in two operations, which the processor may not fuse."""
    result = torch.arange(start, end, step, **options)
    if not result.is_floating_point():
        return result
    steps = torch.arange(len(result), device=result.device).double()
    return result.copy_(steps.mul_(step).add_(start))


FORMS: dict[Any, Callable[..., Any]] = {
    **{operation: _choice(operation) for operation in overloads(_CHOICES)},
    **{operation: _written(operation) for operation in overloads(_UNWRITTEN)},
    aten.relu.default: lambda x: torch.threshold(x, 0, 0),  # which makes 0 of -0
    aten.relu_.default: lambda x: torch.threshold_(x, 0, 0),
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy_,
    aten.fill_.Tensor: _fill_by,
    aten.arange.default: lambda end, **options: _arange(0, end, **options),
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    aten.resize_.default: _resize_,
    aten.index.Tensor: _moved(aten.index.Tensor),
    aten.index_select.default: _moved(aten.index_select.default),
    # Optimisers update many tensors in one call.
    aten._foreach_add.List: _foreach_add,
    aten._foreach_add.Scalar: _foreach(_add),
    aten._foreach_add_.List: _counted(_foreach_add_),
    aten._foreach_add_.Scalar: _foreach_(_add_),
    aten._foreach_add_.Tensor: _foreach_(_add_),
    aten._foreach_mul.Scalar: aten._foreach_mul.Scalar,
    aten._foreach_mul.ScalarList: _foreach(torch.mul),
    aten._foreach_mul_.ScalarList: _foreach_(Tensor.mul_),
    aten._foreach_mul_.Scalar: _counted(aten._foreach_mul_.Scalar),
    aten._foreach_mul_.Tensor: _foreach_(Tensor.mul_),
    aten._foreach_neg.default: _foreach(torch.neg),
    aten._foreach_sqrt.default: _foreach(_sqrt),
    aten._foreach_sqrt_.default: _foreach_(in_place(_sqrt)),
    aten._foreach_div_.ScalarList: _foreach_(_div_),
    aten._foreach_lerp_.Scalar: _foreach_(in_place(_lerp)),
    aten._foreach_addcmul.Scalar: _foreach(_addcmul),
    aten._foreach_addcmul_.Scalar: _foreach_(in_place(_addcmul)),
    aten._foreach_addcdiv_.Scalar: _foreach_(in_place(_addcdiv)),
    aten._foreach_addcdiv_.ScalarList: _foreach_(in_place(_addcdiv)),
    aten._foreach_maximum_.List: _foreach_(in_place(torch.maximum)),
    aten._foreach_norm.Scalar: _norms,
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
    aten.addcmul_.default: in_place(_addcmul),
    aten.addcdiv.default: _addcdiv,
    aten.addcdiv_.default: in_place(_addcdiv),
    aten.lerp.Scalar: _lerp,
    aten.lerp_.Scalar: in_place(_lerp),
    aten.exp.default: _elementwise(functions.exp),
    aten.log.default: _elementwise(functions.log),
    aten.sqrt.default: _sqrt,
    aten.sqrt_.default: in_place(_sqrt),
    aten.erf.default: _elementwise(functions.erf),
    aten.sigmoid.default: _elementwise(functions.sigmoid),
    aten.sigmoid_.default: in_place(_elementwise(functions.sigmoid)),
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.tanh.default: _elementwise(functions.tanh),
    aten.tanh_.default: in_place(_elementwise(functions.tanh)),
    aten.tanh_backward.default: _tanh_backward,
    aten.pow.Tensor_Scalar: _pow,
    aten.bincount.default: _bincount,
    aten.sort.default: _sort,
    aten.sort.stable: _sort,
    aten.topk.default: _topk,
    aten.remainder.Scalar: _of_integers(aten.remainder.Scalar),
    aten.remainder.Tensor: _of_integers(aten.remainder.Tensor),
    aten.floor_divide.default: _of_integers(aten.floor_divide.default),
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _norm,
    aten.mm.default: _matmul,
    aten.bmm.default: lambda a, b: _matmul(a, b, dims=3),
    aten.addmm.default: _addmm,
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _safe_softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.nll_loss_forward.default: _nll_loss,
    aten.nll_loss_backward.default: _nll_loss_backward,
    aten.mse_loss.default: _mse_loss,
    aten.mse_loss_backward.default: _mse_loss_backward,
}
