"""Powers in the Python code of PyTorch's optimisers, where no tensor operation is seen.

Adam computes `beta ** step` of Python numbers, which is the platform's own pow. While
the mode is on, a hook gives it betas whose powers are repeated multiplications.
"""

import math
import threading
from typing import Any
from weakref import WeakSet

from torch import Tensor, optim

from exact.errors import NotExactError
from exact.functions import power

__all__ = ["after_step", "before_step", "restore"]

_KNOWN = (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad)


class _Stepping(threading.local):
    def __init__(self) -> None:
        self.optimizers: WeakSet[optim.Optimizer] = WeakSet()


_STEPPING = _Stepping()


class Base(float):
    """A float whose `**` is repeated multiplication."""

    def __pow__(self, exponent: float, modulus: None = None) -> "Base":
        """The power by repeated squaring, or by sqrt, which IEEE 754 defines."""
        if isinstance(exponent, Tensor):
            raise NotExactError(
                "an optimiser that counts steps in a tensor (capturable=True) has no exact"
                " implementation"
            )
        if exponent == 0.5:
            return Base(math.sqrt(self))
        if exponent != int(exponent) or exponent < 0:
            raise NotExactError(f"a power with exponent {exponent} in an optimiser is not exact")
        return Base(power(float(self), int(exponent)))

    def __rsub__(self, other: float) -> "Base":
        """1 - beta ** step, of which the optimiser takes the root."""
        return Base(other - float(self))


def before_step(optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Make the betas exact. Raises NotExactError for PyTorch's optimisers that were not checked."""
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim") and not isinstance(optimizer, _KNOWN):
        known = ", ".join(known.__name__ for known in _KNOWN)
        raise NotExactError(f"{kind.__name__} has no exact implementation: {known} have")
    _STEPPING.optimizers.add(optimizer)
    _set_betas(optimizer, Base)


def after_step(optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Leave plain numbers, which can be saved and printed."""
    _set_betas(optimizer, float)
    _STEPPING.optimizers.discard(optimizer)


def restore() -> None:
    """The same for optimisers of this thread whose step ended with an exception."""
    for optimizer in list(_STEPPING.optimizers):
        after_step(optimizer, (), {})


def _set_betas(optimizer: optim.Optimizer, kind: type[float]) -> None:
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = tuple(
                kind(beta) if isinstance(beta, float) else beta for beta in group["betas"]
            )
