"""Calls of kernels that are made one after the other, all by one call of the library."""

import ctypes
from typing import Any

from exact.kernels.registry import KernelCall
from exact.kernels.shared_library import library

__all__ = ["Calls"]

_ARGUMENTS = 9


class _Call(ctypes.Structure):
    _fields_ = [("kernel", ctypes.c_void_p), ("arguments", ctypes.c_int64 * _ARGUMENTS)]


class Calls:
    """KernelCall calls, each of which reads and writes the same memory each time."""

    def __init__(self, prepared: list[KernelCall]) -> None:
        self._prepared = prepared  # whose memory is kept as long as this
        self._library: Any = library()
        self._array = (_Call * len(prepared))(*map(_call, prepared))

    def run(self, first: int) -> int:
        """Make the calls from this one on; return which one declined, else their number."""
        declined: int = self._library.run(self._array, first, len(self._prepared))
        return declined


def _call(prepared: KernelCall) -> _Call:
    address = ctypes.cast(prepared.function, ctypes.c_void_p).value
    return _Call(address, (ctypes.c_int64 * _ARGUMENTS)(*(x or 0 for x in prepared.arguments)))
