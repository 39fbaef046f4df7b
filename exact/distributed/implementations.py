"""The operations that have an implementation of their own for divided tensors."""

from collections.abc import Callable
from typing import Any

from exact.registry import named

__all__ = ["IMPLEMENTATIONS", "implements"]

Implementation = Callable[..., Any]
IMPLEMENTATIONS: dict[Any, Implementation] = {}


def implements(*names: str) -> Callable[[Implementation], Implementation]:
    """Register how an operation is computed where an argument is divided.

    The implementation returns NotImplemented where DTensor may take the operation apart itself.
    """

    def decorate(function: Implementation) -> Implementation:
        IMPLEMENTATIONS.update({named(name): function for name in names})
        return function

    return decorate
