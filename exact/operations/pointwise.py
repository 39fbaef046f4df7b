"""Operations on each number by itself: arithmetic, comparison, functions, activations."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid
from exact.errors import NotExactError
from exact.registry import aten, exact_as_is, implements, register

__all__ = ["add", "add_", "rounded"]

# IEEE 754 defines + - × of two numbers to the last bit; the others compare or choose.
exact_as_is("""
    mul abs neg sign sgn threshold_backward floor ceil trunc round.default
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


def _of_integers(operation: Any) -> Callable[..., Tensor]:
    def integers_only(a: Tensor, b: Any) -> Tensor:
        result: Tensor = operation(a, b)
        if result.is_floating_point():
            raise NotExactError(f"{operation} has no exact implementation but for integers")
        return result

    return integers_only


for operation in (aten.remainder.Scalar, aten.remainder.Tensor, aten.floor_divide.default):
    register(operation, _of_integers(operation))


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


@implements("pow.Tensor_Scalar")
def _pow(x: Tensor, exponent: float) -> Tensor:
    """By repeated multiplication, a square root for a half, and one division for a negative."""
    dtype = torch.result_type(x, exponent)
    if not dtype.is_floating_point:
        return torch.pow(x, exponent)  # integers, which no sum rounds
    whole, half = divmod(abs(exponent), 1)
    if half not in (0, 0.5) or whole > 16:
        raise NotExactError(
            f"pow with exponent {exponent} has no exact implementation:"
            " multiples of 1/2 up to 16 have"
        )
    y = x.double()
    result = functions.sqrt(y) if half else torch.ones_like(y)
    for _ in range(int(whole)):
        result = result * y
    return (result if exponent >= 0 else torch.ones_like(y) / result).to(dtype)


def rounded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function, with results rounded to the operand's dtype, or the default for integers."""

    def called(x: Tensor) -> Tensor:
        return function(x).to(x.dtype if x.is_floating_point() else torch.get_default_dtype())

    return called


for function in (functions.exp, functions.log, functions.sqrt, functions.erf,
                 functions.sigmoid, functions.tanh):  # fmt: skip
    implements(function.__name__)(rounded(function))


@implements("sigmoid_backward")
def _sigmoid_backward(grad: Tensor, output: Tensor) -> Tensor:
    return grad * (output * (1 - output))


@implements("tanh_backward")
def _tanh_backward(grad: Tensor, output: Tensor) -> Tensor:
    return grad * (1 - output * output)


@implements("relu")
def _relu(x: Tensor) -> Tensor:
    return torch.threshold(x, 0, 0)  # which makes 0 of -0


@implements("relu_")
def _relu_(x: Tensor) -> Tensor:
    return torch.threshold_(x, 0, 0)


@implements("gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    grid.require_floating_point(x)
    y = x.double()
    if approximate == "none":
        return (y * functions.normal_cdf(y)).to(x.dtype)
    return (y * functions.sigmoid(_gelu_curve(y))).to(x.dtype)


@implements("gelu_backward")
def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    y = x.double()
    if approximate == "none":
        factor = functions.normal_cdf(y)
        slope = functions.exp(y * y * -0.5) * (1 / math.sqrt(2 * math.pi))
    else:
        factor = functions.sigmoid(_gelu_curve(y))
        slope = factor * (1 - factor) * ((y * y * (3 * _CUBIC) + 1) * _LINEAR)
    return (grad.double() * (factor + y * slope)).to(x.dtype)


# ½ (1 + tanh u) = sigmoid(2u), for u = sqrt(2/π) (x + 0.044715 x³).
_LINEAR, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def _gelu_curve(x: Tensor) -> Tensor:
    return (x * x * _CUBIC + 1) * x * _LINEAR
