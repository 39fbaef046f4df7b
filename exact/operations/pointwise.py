"""Operations on each number by itself: arithmetic, comparison, functions, activations."""

import math
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid
from exact.registry import exact_as_is, implements

__all__ = ["add", "add_"]

# IEEE 754 defines + - × of two numbers to the last bit; the others compare or choose.
exact_as_is("""
    mul abs neg sign sgn floor ceil trunc round.default positive frac signbit copysign heaviside
    nextafter isneginf isposinf gcd lcm nan_to_num
    eq ne lt le gt ge isnan isinf where masked_fill equal is_same_size
    logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift
    __lshift__ __rshift__ __and__ __or__ __xor__
""")


@implements("add.Tensor", "add.Scalar")
def add(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    """The sum a + alpha · b, the product rounded before the sum."""
    return torch.add(a, _scaled(a, b, alpha))


@implements("add_.Tensor", "add_.Scalar")
def add_(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    """The same in place."""
    return a.add_(_scaled(a, b, alpha))


@implements("sub.Tensor", "sub.Scalar")
def _sub(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return torch.sub(a, _scaled(a, b, alpha))


@implements("sub_.Tensor", "sub_.Scalar")
def _sub_(a: Tensor, b: Any, *, alpha: float = 1) -> Tensor:
    return a.sub_(_scaled(a, b, alpha))


@implements("rsub.Tensor", "rsub.Scalar")
def _rsub(a: Tensor, b: Any, alpha: float = 1) -> Tensor:
    dtype = torch.result_type(a, b)
    return _sub(torch.as_tensor(b, dtype=dtype, device=a.device), a, alpha=alpha)


def _scaled(a: Tensor, b: Any, alpha: float) -> Any:
    """The summand b · alpha as a product of its own, which no processor fuses with the sum."""
    if alpha == 1:
        return b
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point and not grid.representable(dtype, alpha):
        raise TypeError(f"expected an alpha of {dtype}, not {alpha}")
    return (b.to(dtype) if isinstance(b, Tensor) else b) * alpha


@implements("div.Tensor", "div.Scalar")
def _div(a: Tensor, b: Any) -> Tensor:
    return torch.div(a, _divisor(a, b))


@implements("div_.Tensor", "div_.Scalar")
def _div_(a: Tensor, b: Any) -> Tensor:
    return a.div_(_divisor(a, b))


@implements("reciprocal")
def _reciprocal(x: Tensor) -> Tensor:
    return _div(torch.ones_like(x), x)


def _divisor(a: Tensor, b: Any) -> Any:
    # On a GPU, division by a number or by a tensor on the CPU multiplies by the reciprocal.
    if a.device.type == "cpu":
        return b
    dtype = torch.result_type(a, b)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return torch.as_tensor(b, dtype=dtype, device=a.device)


@implements("div.Tensor_mode", "div.Scalar_mode")
def _div_rounded(a: Tensor, b: Any, *, rounding_mode: str | None) -> Tensor:
    """Without a mode the quotient; else by the remainder, as the quotient's rounding may err."""
    dtype = torch.result_type(a, b)
    if rounding_mode is None:
        return _div(a, b)
    if not dtype.is_floating_point:
        return torch.div(a, b, rounding_mode=rounding_mode)
    x, y = (torch.as_tensor(z, device=a.device).to(dtype).double() for z in (a, b))
    quotient = x / y
    whole = torch.where(y == 0, quotient, ((x - torch.fmod(x, y)) / y).round())
    if rounding_mode == "floor":
        rest = torch.fmod(x, y)
        whole = whole - ((rest != 0) & ((rest < 0) != (y < 0))).double()
    whole = torch.where(x.isinf() | x.isnan(), quotient * math.nan, whole)
    return torch.where(y == 0, quotient, whole).copysign(quotient).to(dtype)


@implements("floor_divide", "floor_divide.Scalar")
def _floor_divide(a: Tensor, b: Any) -> Tensor:
    return _div_rounded(a, b, rounding_mode="floor")


@implements("fmod.Tensor", "fmod.Scalar")
def _fmod(a: Tensor, b: Any) -> Tensor:
    """The remainder with the sign of a, which has no rounding."""
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point:
        return torch.fmod(a, b)
    x, y = (torch.as_tensor(z, device=a.device).to(dtype).double() for z in (a, b))
    return torch.fmod(x, y).to(dtype)


@implements("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def _remainder(a: Any, b: Any) -> Tensor:
    """The remainder with the sign of b."""
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point:
        result: Tensor = torch.remainder(a, b)
        return result
    device = (a if isinstance(a, Tensor) else b).device
    x, y = (torch.as_tensor(z, device=device).to(dtype).double() for z in (a, b))
    rest = torch.fmod(x, y)
    return torch.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest).to(dtype)


@implements("addcmul")
def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return x + a * b * value


@implements("addcdiv")
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    grid.require_floating_point(x)
    # The quotient last, as in steps that optimisers also take in another way on a GPU.
    return x + a * value / b


@implements("lerp.Scalar")
def _lerp(x: Tensor, end: Tensor, weight: float) -> Tensor:
    grid.require_floating_point(x)
    grid.require_same_type(x, end)
    # From the nearer end, so that weights 0 and 1 give the ends themselves.
    return x + (end - x) * weight if weight < 0.5 else end - (end - x) * (1 - weight)


@implements("lerp.Tensor")
def _lerp_tensor(x: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    grid.require_floating_point(x)
    grid.require_same_type(x, end)
    step = end - x
    return torch.where(weight.abs() < 0.5, x + step * weight, end - step * (1 - weight))


@implements("ldexp.Tensor")
def _ldexp(x: Tensor, exponent: Tensor) -> Tensor:
    dtype = torch.result_type(x, exponent)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return (x.double() * functions.exp2(exponent)).to(dtype)


@implements("round.decimals")
def _round_decimals(x: Tensor, *, decimals: int) -> Tensor:
    """In float64, to a multiple of a power of ten."""
    if not x.is_floating_point():
        return torch.round(x, decimals=decimals)
    y = x.double()
    power = torch.full_like(y, float(10 ** abs(decimals)))
    rounded = (y * power).round() / power if decimals >= 0 else (y / power).round() * power
    return rounded.to(x.dtype)


@implements("pow.Tensor_Scalar")
def _pow(x: Tensor, exponent: float) -> Tensor:
    """By repeated multiplication, a square root for a half, and one division for a negative.

    Other exponents, and beyond 16, by exponential and logarithm.
    """
    dtype = torch.result_type(x, exponent)
    if not dtype.is_floating_point:
        return torch.pow(x, exponent)  # integers, which no sum rounds
    whole, half = divmod(abs(exponent), 1) if math.isfinite(exponent) else (math.inf, 0)
    if half not in (0, 0.5) or whole > 16:
        return functions.pow(x, torch.full_like(x, exponent, dtype=torch.float64)).to(dtype)
    y = x.double()
    result = functions.sqrt(y) if half else torch.ones_like(y)
    for _ in range(int(whole)):
        result = result * y
    return (result if exponent >= 0 else torch.ones_like(y) / result).to(dtype)
