"""Arithmetic for PyTorch whose results are the same bits on every machine.

Imports torch and the standard library, and nothing of the project around it.
"""

from exact.dispatch import NotExactError, mode
from exact.machine import MachineError

__all__ = ["MachineError", "NotExactError", "mode"]
