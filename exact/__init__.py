"""Arithmetic for PyTorch whose results are the same bits on every machine.

Imports torch and the standard library, and nothing of the project around it.
"""

from exact.dispatch import mode
from exact.errors import MachineError, NotExactError
from exact.grid import from_bytes

__all__ = ["MachineError", "NotExactError", "from_bytes", "mode"]
