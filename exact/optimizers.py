"""Powers in the Python code of PyTorch's optimisers, where no operation is seen.

Adam computes `beta ** step` of Python numbers, which is the platform's own pow. While
the mode is on, a hook gives it betas whose powers are repeated multiplications.
"""

import math
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, optim
from torch.utils._python_dispatch import _disable_current_modes

from exact import functions
from exact.errors import NotExactError
from exact.functions import power

__all__ = ["Base", "after_step", "before_step", "restore"]

_KNOWN = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.Adamax,
    optim.ASGD,
    optim.NAdam,
    optim.RAdam,
    optim.Rprop,
    optim.LBFGS,
)
# Their steps for lists of tensors, the default on GPUs, round in another order: none takes them.
_ONE_BY_ONE = (optim.Adamax, optim.ASGD, optim.NAdam, optim.RAdam)
_BASES = ("momentum_decay", "lambd", "alpha")  # of NAdam and ASGD, beside the betas


class _Stepping(threading.local):
    def __init__(self) -> None:
        self.optimizers: WeakSet[optim.Optimizer] = WeakSet()
        self.foreach: WeakKeyDictionary[optim.Optimizer, list[Any]] = WeakKeyDictionary()


_STEPPING = _Stepping()


def _arithmetic(name: str) -> Callable[["Base", Any], Any]:
    operation = getattr(float, name)

    def compute(self: "Base", other: Any) -> Any:
        result = operation(self, other)
        return result if result is NotImplemented else Base(result)

    return compute


class Base(float):
    """A float whose `**` is repeated multiplication, and whose results are such floats, too."""

    __add__ = __radd__ = _arithmetic("__add__")
    __mul__ = __rmul__ = _arithmetic("__mul__")
    __sub__, __rsub__ = _arithmetic("__sub__"), _arithmetic("__rsub__")
    __truediv__, __rtruediv__ = _arithmetic("__truediv__"), _arithmetic("__rtruediv__")

    def __pow__(self, exponent: float, modulus: None = None) -> "Base":
        """The power by repeated squaring, by sqrt, which IEEE 754 defines, or exp and log."""
        if isinstance(exponent, Tensor):
            raise NotExactError(
                "an optimiser that counts steps in a tensor (capturable=True) has no exact"
                " implementation"
            )
        if exponent == 0.5:
            return Base(math.sqrt(self))
        if exponent == int(exponent) and exponent >= 0:
            return Base(power(float(self), int(exponent)))
        with _disable_current_modes():
            x, y = (torch.tensor(float(z), dtype=torch.float64) for z in (self, exponent))
            return Base(functions.pow(x, y).item())

    def __rpow__(self, base: float, modulus: None = None) -> "Base":
        """The power of a plain number whose exponent this is."""
        return Base(base) ** float(self)


def before_step(optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Make the bases exact. Raises NotExactError for PyTorch's optimisers that were not checked."""
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim") and not isinstance(optimizer, _KNOWN):
        known = ", ".join(known.__name__ for known in _KNOWN)
        raise NotExactError(f"{kind.__name__} has no exact implementation: {known} have")
    _STEPPING.optimizers.add(optimizer)
    _set_bases(optimizer, Base)
    if isinstance(optimizer, _ONE_BY_ONE):
        groups = optimizer.param_groups
        _STEPPING.foreach[optimizer] = [group["foreach"] for group in groups]
        for group in groups:
            group["foreach"] = False


def after_step(optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Leave plain numbers, which can be saved and printed."""
    _set_bases(optimizer, float)
    for group, foreach in zip(
        optimizer.param_groups, _STEPPING.foreach.pop(optimizer, []), strict=False
    ):
        group["foreach"] = foreach
    _STEPPING.optimizers.discard(optimizer)


def restore() -> None:
    """The same for optimisers of this thread whose step ended with an exception."""
    for optimizer in list(_STEPPING.optimizers):
        after_step(optimizer, (), {})


def _set_bases(optimizer: optim.Optimizer, kind: type[float]) -> None:
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = tuple(
                kind(beta) if isinstance(beta, float) else beta for beta in group["betas"]
            )
        for name in _BASES:
            if isinstance(group.get(name), float):
                group[name] = kind(group[name])
