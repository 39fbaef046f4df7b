"""Functions of each number: exponentials, logarithms, powers, trigonometric and normal ones."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid, hyperbolic, normal, trigonometry
from exact.registry import implements

__all__ = ["pow_tensor", "rounded"]


def rounded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, with results rounded to the operands' dtype, or the default for integers."""

    def called(x: Tensor, *others: Tensor) -> Tensor:
        dtype = x.dtype
        for other in others:
            dtype = torch.promote_types(dtype, torch.result_type(x, other))
        dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
        return function(x, *others).to(dtype)

    return called


for module, names in (
    (functions, "exp exp2 expm1 log log10 log1p log2 sigmoid sqrt"),
    (hyperbolic, "acosh asinh atanh cosh sinh tanh"),
    (normal, "erf erfc erfinv"),
    (trigonometry, "acos asin atan atan2 cos sin tan"),
):
    for name in names.split():
        implements(name)(rounded(getattr(module, name)))


@implements("rsqrt")
@rounded
def _rsqrt(x: Tensor) -> Tensor:
    return 1 / functions.sqrt(x)


@implements("sinc")
@rounded
def _sinc(x: Tensor) -> Tensor:
    # sin πx by the turn's fraction, so that whole numbers give 0.
    y = x.double()
    turn = (y - 2 * (y * 0.5).round()) * math.pi
    return torch.where(y == 0, 1.0, trigonometry.sin(turn) / torch.where(y == 0, 1.0, y * math.pi))


@implements("special_ndtri")
@rounded
def _ndtri(x: Tensor) -> Tensor:
    return normal.erfinv(2 * x.double() - 1) * math.sqrt(2)


@implements("special_entr")
@rounded
def _entropy(x: Tensor) -> Tensor:
    return -_xlogy64(x.double(), x.double())


@implements("logit")
def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    y = x.double()
    if eps is not None:
        y = torch.where(y < eps, eps, torch.where(y > 1 - eps, 1 - eps, y))
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    # log (y / (1 - y)) = 2 artanh (2y - 1)
    return (2 * hyperbolic.atanh(2 * y - 1)).to(dtype)


@implements("logit_backward")
def _logit_backward(grad: Tensor, x: Tensor, eps: float | None = None) -> Tensor:
    y = x.double()
    slope = 1 / (y * (1 - y))
    low, high = (0.0, 1.0) if eps is None else (eps, 1 - eps)
    outside = math.nan if eps is None else 0.0
    return (grad.double() * torch.where((y < low) | (y > high), outside, slope)).to(grad.dtype)


@implements("pow.Tensor_Tensor")
def pow_tensor(x: Tensor, exponent: Tensor) -> Tensor:
    """x^exponent, integers by PyTorch's own multiplication."""
    dtype = torch.result_type(x, exponent)
    if not dtype.is_floating_point:
        return torch.pow(x, exponent)
    return functions.pow(x, exponent).to(dtype)


@implements("pow.Scalar")
def _pow_scalar(x: float, exponent: Tensor) -> Tensor:
    dtype = torch.result_type(x, exponent)
    return pow_tensor(torch.as_tensor(x, dtype=dtype, device=exponent.device), exponent.to(dtype))


@implements("logaddexp")
@rounded
def _logaddexp(x: Tensor, y: Tensor) -> Tensor:
    high, low = torch.maximum(x, y).double(), torch.minimum(x, y).double()
    gap = torch.where(high == low, 0.0, low - high)
    return high + functions.log1p(functions.exp(gap))


@implements("logaddexp2")
@rounded
def _logaddexp2(x: Tensor, y: Tensor) -> Tensor:
    high, low = torch.maximum(x, y).double(), torch.minimum(x, y).double()
    gap = torch.where(high == low, 0.0, low - high)
    return high + functions.log1p(functions.exp2(gap)) * (1 / math.log(2))


@implements("hypot")
@rounded
def _hypot(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    size = torch.maximum(x.abs(), y.abs())
    size = grid.power_of_two_below(size).clamp(min=2.0**-1022, max=2.0**1022)
    x, y = x / size, y / size
    infinite = x.isinf() | y.isinf()
    return torch.where(infinite, math.inf, functions.sqrt(x * x + y * y) * size)


def _xlogy64(x: Tensor, y: Tensor) -> Tensor:
    """X log y, and 0 for x = 0."""
    product = x * functions.log(y)
    return torch.where((x == 0) & ~y.isnan(), 0.0, product)


@implements("xlogy.Tensor", "xlogy.Scalar_Self", "xlogy.Scalar_Other")
def _xlogy(x: Any, y: Any) -> Tensor:
    return _binary(_xlogy64, x, y)


@implements("special_xlog1py", "special_xlog1py.self_scalar", "special_xlog1py.other_scalar")
def _xlog1py(x: Any, y: Any) -> Tensor:
    def of_tensors(x: Tensor, y: Tensor) -> Tensor:
        return torch.where((x == 0) & ~y.isnan(), 0.0, x * functions.log1p(y))

    return _binary(of_tensors, x, y)


def _binary(function: Callable[[Tensor, Tensor], Tensor], x: Any, y: Any) -> Tensor:
    """The function of two operands, of which one may be a number."""
    dtype = torch.result_type(x, y)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    device = (x if isinstance(x, Tensor) else y).device
    x, y = (torch.as_tensor(z, device=device).double() for z in (x, y))
    return function(x, y).to(dtype)
