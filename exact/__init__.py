"""Arithmetic for PyTorch whose results are the same bits on every machine.

Imports torch and the standard library alone. The import changes nothing in the process.
"""

from exact import operations as _operations  # noqa: F401  (registers them)
from exact.bytes import from_bytes
from exact.compile import compile  # noqa: A004
from exact.errors import MachineError, NotExactError
from exact.mode import mode

__all__ = ["MachineError", "NotExactError", "compile", "from_bytes", "mode"]
__version__ = "1.0.0"
