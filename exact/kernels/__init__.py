"""Compiled kernels of the operations that a training step spends its time in.

They are optional. The implementations in PyTorch are the reference: a kernel has the same bits, or
declines, as it does for numbers that are too large for it, and then the reference is called.
"""

from exact.kernels import counting, gathering, operations, pooling  # noqa: F401  (registers them)
from exact.kernels.calls import Calls
from exact.kernels.convolution import convolve, convolve_gradients
from exact.kernels.products import multiply
from exact.kernels.registry import KernelCall, find
from exact.kernels.sgd import update
from exact.kernels.shared_library import build, library

__all__ = [
    "Calls",
    "KernelCall",
    "build",
    "convolve",
    "convolve_gradients",
    "find",
    "library",
    "multiply",
    "update",
]
